//! The streams of exits: subscribing, reading and dropping against publishing and closing.

use std::sync::Arc;
use std::task::Poll;

use loom::model;
use loom::thread;

use super::{Wakes, exit_with, new_shim, poll_next, waker_with};
use crate::exits::Subscribers;
use crate::outbox::Outbox;
use crate::{Exits, ShimExit};

fn publish(subscribers: &Subscribers, exit: ShimExit) {
    subscribers.publish(exit, &mut Outbox::<()>::new().wakers);
}

fn close(subscribers: &Subscribers) {
    subscribers.close(&mut Outbox::<()>::new().wakers);
}

/// Reads a stream until it has no exit. Returns what it read, and the wakes of the last poll.
fn read(exits: &mut Exits) -> (Vec<ShimExit>, Option<Arc<Wakes>>) {
    let mut read = Vec::new();
    loop {
        let wakes = Arc::new(Wakes::default());
        match poll_next(exits, &Arc::clone(&wakes).into()) {
            Poll::Ready(Some(exit)) => read.push(exit),
            Poll::Ready(None) => return (read, None),
            Poll::Pending => return (read, Some(wakes)),
        }
    }
}

/// Checks that a reader which waits is woken, and reads the rest.
fn read_on(
    exits: &mut Exits,
    (mut exits_read, wakes): (Vec<ShimExit>, Option<Arc<Wakes>>),
) -> Vec<ShimExit> {
    if let Some(wakes) = wakes {
        assert_eq!(wakes.count(), 1);
        let (rest, wakes) = read(exits);
        assert!(wakes.is_none(), "the stream has not ended");
        exits_read.extend(rest);
    }
    exits_read
}

#[test]
fn stream_yields_the_exits_since_its_creation_in_order_and_ends() {
    model(|| {
        let subscribers = Arc::new(Subscribers::new());
        let publisher = Arc::clone(&subscribers);
        let thread = thread::spawn(move || {
            publish(&publisher, exit_with(1));
            publish(&publisher, exit_with(2));
            close(&publisher);
        });
        let mut exits = subscribers.subscribe();
        let first = read(&mut exits);
        thread.join().unwrap();
        let all = read_on(&mut exits, first);
        assert!([exit_with(1), exit_with(2)].ends_with(&all), "{all:?}");
    });
}

#[test]
fn next_exit_wakes_a_reader_that_waits() {
    model(|| {
        let subscribers = Arc::new(Subscribers::new());
        let mut exits = subscribers.subscribe();
        let publisher = Arc::clone(&subscribers);
        let thread = thread::spawn(move || publish(&publisher, exit_with(1)));
        let (before, wakes) = read(&mut exits);
        thread.join().unwrap();
        let wakes = wakes.expect("the stream has ended");
        assert!(wakes.count() == 1 || !before.is_empty());
        assert_eq!(before.len() + read(&mut exits).0.len(), 1);
    });
}

#[test]
fn every_reader_of_an_open_stream_gets_every_exit() {
    model(|| {
        let subscribers = Subscribers::new();
        let mut local = subscribers.subscribe();
        let mut remote = subscribers.subscribe();
        let thread = thread::spawn(move || {
            let first = read(&mut remote);
            (remote, first)
        });
        publish(&subscribers, exit_with(1));
        close(&subscribers);
        let (mut remote, first) = thread.join().unwrap();
        assert_eq!(read_on(&mut remote, first), [exit_with(1)]);
        assert_eq!(read(&mut local).0, [exit_with(1)]);
    });
}

#[test]
fn full_stream_counts_each_exit_that_it_does_not_yield() {
    model(|| {
        let subscribers = Arc::new(Subscribers::new());
        let mut exits = subscribers.subscribe_bounded(1);
        let publisher = Arc::clone(&subscribers);
        let thread = thread::spawn(move || {
            for code in 1..=3 {
                publish(&publisher, exit_with(code));
            }
            close(&publisher);
        });
        let first = read(&mut exits);
        thread.join().unwrap();
        let all = read_on(&mut exits, first);
        assert!(all.is_sorted_by_key(ShimExit::code), "{all:?}");
        assert_eq!(all.last(), Some(&exit_with(3)));
        assert_eq!(exits.dropped() + all.len() as u64, 3);
    });
}

#[test]
fn dropped_stream_leaves_no_waker_and_does_not_block_the_publisher() {
    model(|| {
        let subscribers = Arc::new(Subscribers::new());
        let mut exits = subscribers.subscribe();
        let wakes = Arc::new(Wakes::default());
        // Its waker may hold the task that reads another stream.
        let other = subscribers.subscribe();
        let other = std::sync::Mutex::new(Some(other));
        let used = Arc::clone(&subscribers);
        let counted = Arc::clone(&wakes);
        let waker = waker_with(
            move || std::task::Wake::wake_by_ref(&counted),
            move || {
                drop(other.lock().unwrap().take());
                used.has_any();
            },
        );
        let publisher = Arc::clone(&subscribers);
        let thread = thread::spawn(move || publish(&publisher, exit_with(1)));
        let _ = poll_next(&mut exits, &waker);
        drop(waker);
        drop(exits);
        thread.join().unwrap();
        assert!(wakes.count() <= 1);
        assert_eq!(Arc::strong_count(&wakes), 1, "a waker is left");
        assert!(!subscribers.has_any());
    });
}

#[test]
fn stream_has_an_exit_that_a_handle_shows() {
    model(|| {
        let shim = new_shim();
        let subscribers = Subscribers::new();
        let mut exits = subscribers.subscribe();
        let resolving = Arc::clone(&shim);
        let thread = thread::spawn(move || {
            let mut outbox = Outbox::<()>::new();
            outbox.resolve(&subscribers, &mut resolving.state(), exit_with(3));
        });
        if let Some(exit) = shim.state().exit() {
            let next = poll_next(&mut exits, std::task::Waker::noop());
            assert_eq!(next, Poll::Ready(Some(exit)));
        }
        thread.join().unwrap();
    });
}

#[test]
fn stream_ends_when_the_last_handle_is_dropped() {
    model(|| {
        let subscribers = Subscribers::new();
        let mut exits = subscribers.subscribe();
        let thread = thread::spawn(move || drop(subscribers));
        let first = read(&mut exits);
        thread.join().unwrap();
        assert_eq!(read_on(&mut exits, first), []);
    });
}

#[test]
fn waker_that_panics_does_not_prevent_the_end_of_another_stream() {
    model(|| {
        let subscribers = Subscribers::new();
        let (mut first, mut second) = (subscribers.subscribe(), subscribers.subscribe());
        let panicking = waker_with(|| std::panic::resume_unwind(Box::new("waker")), || {});
        assert!(poll_next(&mut first, &panicking).is_pending());
        let thread = thread::spawn(move || drop(subscribers));
        let before = read(&mut second);
        thread.join().unwrap();
        assert_eq!(read_on(&mut second, before), []);
    });
}
