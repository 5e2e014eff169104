//! The outbox: wakers run without a lock, so they may panic, and may use the reaper.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use loom::model;
use loom::thread;

use super::{Waiter, Wakes, exit_with, new_shim, poll_next, waker_with};
use crate::exits::Subscribers;
use crate::outbox::Outbox;
use crate::shim::Shim;

/// Resolves a shim as a slice of the sweep does.
fn resolve(shim: &Shim<()>, subscribers: &Subscribers) {
    let mut outbox = Outbox::<()>::new();
    outbox.resolve(subscribers, &mut shim.state(), exit_with(3));
}

#[test]
fn waker_may_use_the_shim_and_the_streams() {
    model(|| {
        let shim = new_shim();
        let subscribers = Arc::new(Subscribers::new());
        let mut exits = subscribers.subscribe();
        let reentrant = |shim: &Arc<Shim<()>>| {
            let (shim, subscribers) = (Arc::clone(shim), Arc::clone(&subscribers));
            let reenter = move || {
                assert!(Waiter::new(&shim).poll_now().is_ready());
                assert!(subscribers.has_any());
                drop(subscribers.subscribe());
            };
            waker_with(reenter, || {})
        };
        let mut waiter = Waiter::new(&shim);
        let _ = waiter.poll(&reentrant(&shim));
        let _ = poll_next(&mut exits, &reentrant(&shim));
        let thread = {
            let (shim, subscribers) = (Arc::clone(&shim), Arc::clone(&subscribers));
            thread::spawn(move || resolve(&shim, &subscribers))
        };
        let mut second = Waiter::new(&shim);
        let _ = second.poll(&reentrant(&shim));
        thread.join().unwrap();
        assert_eq!(waiter.poll_now(), Poll::Ready(Ok(exit_with(3))));
    });
}

#[test]
fn waker_that_panics_does_not_prevent_the_others() {
    model(|| {
        let shim = new_shim();
        let subscribers = Arc::new(Subscribers::new());
        let mut exits = subscribers.subscribe();
        let wakes = Arc::new(Wakes::default());
        let panicking = waker_with(|| std::panic::resume_unwind(Box::new("waker")), || {});
        let mut waiters = [Waiter::new(&shim), Waiter::new(&shim)];
        assert!(waiters[0].poll(&panicking).is_pending());
        assert!(poll_next(&mut exits, &Arc::clone(&wakes).into()).is_pending());
        let thread = {
            let (shim, subscribers) = (Arc::clone(&shim), Arc::clone(&subscribers));
            thread::spawn(move || resolve(&shim, &subscribers))
        };
        let second = waiters[1].poll(&Arc::clone(&wakes).into());
        thread.join().unwrap();
        assert_eq!(wakes.count(), 1 + usize::from(second.is_pending()));
    });
}

#[test]
fn wakers_of_a_slice_that_panics_are_woken() {
    model(|| {
        let shim = new_shim();
        let subscribers = Subscribers::new();
        let mut waiter = Waiter::new(&shim);
        let resolving = Arc::clone(&shim);
        let thread = thread::spawn(move || {
            let slice = AssertUnwindSafe(|| {
                let mut outbox = Outbox::<()>::new();
                outbox.resolve(&subscribers, &mut resolving.state(), exit_with(3));
                std::panic::resume_unwind(Box::new("slice"));
            });
            assert!(catch_unwind(slice).is_err());
        });
        let wakes = Arc::new(Wakes::default());
        let first = waiter.poll(&Arc::clone(&wakes).into());
        thread.join().unwrap();
        assert_eq!(wakes.count(), usize::from(first.is_pending()));
    });
}
