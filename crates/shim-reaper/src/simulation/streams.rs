//! The streams of exits, and what each must yield.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_core::Stream as _;

use super::run::Simulation;
use super::world::{Flag, Registration, Stream, World};
use crate::{Exits, ShimExit};

impl Simulation {
    /// Replaces the second stream by one that buffers up to `capacity` exits.
    pub(super) fn subscribe(&self, capacity: usize, panics: bool) {
        self.check_second_stream();
        let mut exits = self.core.shared.subscribers.subscribe_bounded(capacity);
        let flag = Arc::new(Flag::new(panics));
        let (_, has_ended) = read(&mut exits, &Waker::from(Arc::clone(&flag)));
        if has_ended {
            return;
        }
        let mut world = self.world();
        read_first(&mut world);
        world.stream = Some(Stream {
            exits,
            capacity,
            skipped: world.published.len(),
            flag,
        });
    }

    /// The first stream has the exit of each registration once.
    pub(super) fn check_streams(&self) {
        let mut world = self.world();
        let has_ended = read_first(&mut world);
        let published = world.published.len();
        let checked = std::mem::replace(&mut world.checked, published);
        for number in checked..published {
            let exit = world.published[number];
            let unpublished = |one: &&mut Registration| !one.is_published && one.exit == Some(exit);
            match world.registrations.iter_mut().find(unpublished) {
                Some(registration) => registration.is_published = true,
                None => world.fail(format!("{exit:?} is published, but belongs to no handle")),
            }
        }
        let mut registrations = world.registrations.iter();
        let missing = registrations.find(|one| one.exit.is_some() && !one.is_published);
        if let Some(missing) = missing.map(|one| format!("{:?} is not published", one.exit)) {
            world.fail(missing);
        }
        if has_ended && !self.core.shared.is_closing() {
            world.fail("the stream ended before a shutdown".into());
        }
        let has_event = |one: &Stream| published > one.skipped || has_ended;
        let is_asleep = |one: &Stream| has_event(one) && !one.flag.is_woken();
        if world.stream.as_ref().is_some_and(is_asleep) {
            world.fail("the reader of the second stream was not woken".into());
        }
    }

    /// The second stream has the latest of the exits since it was created, in the same order, and
    /// counts the others.
    pub(super) fn check_second_stream(&self) {
        let mut world = self.world();
        let Some(mut stream) = world.stream.take() else {
            return;
        };
        read_first(&mut world);
        let (exits, _) = read(&mut stream.exits, Waker::noop());
        let expected = &world.published[stream.skipped..];
        let dropped = expected.len().saturating_sub(stream.capacity);
        if exits != expected[dropped..] || stream.exits.dropped() != dropped as u64 {
            let failure = format!("{stream:?} had {exits:?} in place of {expected:?}");
            world.fail(failure);
        }
    }
}

/// Reads what the first stream has. Returns whether it has ended.
fn read_first(world: &mut World) -> bool {
    let (exits, has_ended) = read(&mut world.exits, Waker::noop());
    world.published.extend(exits);
    has_ended
}

/// Returns the exits that a stream has, and whether it has ended.
fn read(exits: &mut Exits, waker: &Waker) -> (Vec<ShimExit>, bool) {
    let mut found = Vec::new();
    let mut cx = Context::from_waker(waker);
    loop {
        match Pin::new(&mut *exits).poll_next(&mut cx) {
            Poll::Ready(Some(exit)) => found.push(exit),
            Poll::Ready(None) => return (found, true),
            Poll::Pending => return (found, false),
        }
    }
}
