//! The exit slot of a shim: resolving it against polling, moving, cloning and dropping its handles.

use std::sync::Arc;
use std::task::Poll;

use loom::model;
use loom::thread;

use super::{Waiter, Wakes, exit_with, new_shim, waker_with};
use crate::shim::Shim;
use crate::wake_all::wake_all;
use crate::{ReaperClosed, ShimExit};

fn resolve(shim: &Shim<()>, exit: ShimExit) -> bool {
    let mut wakers = Vec::new();
    let is_first = shim.state().resolve(exit, &mut wakers);
    wake_all(wakers);
    is_first
}

fn close(shim: &Shim<()>) -> bool {
    let mut wakers = Vec::new();
    let is_first = shim.state().close(&mut wakers);
    wake_all(wakers);
    is_first
}

#[test]
fn every_waiter_is_woken_once_and_gets_the_same_exit() {
    model(|| {
        let shim = new_shim();
        let poll = || {
            let mut waiter = Waiter::new(&shim);
            thread::spawn(move || {
                let wakes = Arc::new(Wakes::default());
                let first = waiter.poll(&Arc::clone(&wakes).into());
                (waiter, wakes, first)
            })
        };
        let threads = [poll(), poll()];
        assert!(resolve(&shim, exit_with(3)));
        for thread in threads {
            let (mut waiter, wakes, first) = thread.join().unwrap();
            assert_eq!(wakes.count(), usize::from(first.is_pending()));
            assert_eq!(waiter.poll_now(), Poll::Ready(Ok(exit_with(3))));
            drop(waiter);
            assert_eq!(Arc::strong_count(&wakes), 1, "a waker is left");
        }
    });
}

#[test]
fn dropped_waiter_leaves_no_waker_and_does_not_stop_another() {
    model(|| {
        let shim = new_shim();
        let (mut kept, kept_wakes) = (Waiter::new(&shim), Arc::new(Wakes::default()));
        assert!(kept.poll(&Arc::clone(&kept_wakes).into()).is_pending());
        let (mut dropped, running) = (Waiter::new(&shim), Arc::clone(&shim));
        let thread = thread::spawn(move || {
            let wakes = Arc::new(Wakes::default());
            let was_pending = dropped.poll(&Arc::clone(&wakes).into()).is_pending();
            drop(dropped);
            if running.state().is_running() {
                assert_eq!(Arc::strong_count(&wakes), 1, "a waker is left");
            }
            (wakes, was_pending)
        });
        resolve(&shim, exit_with(3));
        let (wakes, was_pending) = thread.join().unwrap();
        assert!(wakes.count() <= usize::from(was_pending));
        assert_eq!(Arc::strong_count(&wakes), 1, "a waker is left");
        assert_eq!(kept_wakes.count(), 1);
    });
}

#[test]
fn handle_that_moves_to_another_task_wakes_the_task_that_polled_it_last() {
    model(|| {
        let shim = new_shim();
        let mut waiter = Waiter::new(&shim);
        let thread = thread::spawn(move || {
            let (old, new) = (Arc::new(Wakes::default()), Arc::new(Wakes::default()));
            let first = waiter.poll(&Arc::clone(&old).into());
            let second = waiter.poll(&Arc::clone(&new).into());
            (waiter, [old, new], [first, second])
        });
        resolve(&shim, exit_with(3));
        let (_waiter, [old, new], [first, second]) = thread.join().unwrap();
        let expected = match (first.is_pending(), second.is_pending()) {
            (true, true) => (0, 1),
            (true, false) => (1, 0),
            (false, _) => (0, 0),
        };
        assert_eq!((old.count(), new.count()), expected);
    });
}

#[test]
fn of_an_exit_and_a_shutdown_one_resolves_all_handles() {
    model(|| {
        let shim = new_shim();
        let (mut waiter, wakes) = (Waiter::new(&shim), Arc::new(Wakes::default()));
        assert!(waiter.poll(&Arc::clone(&wakes).into()).is_pending());
        let closing = Arc::clone(&shim);
        let thread = thread::spawn(move || close(&closing));
        let resolved = resolve(&shim, exit_with(3));
        let closed = thread.join().unwrap();
        assert_ne!(resolved, closed);
        assert_eq!(wakes.count(), 1);
        let expected = if resolved {
            Ok(exit_with(3))
        } else {
            Err(ReaperClosed)
        };
        assert_eq!(waiter.poll_now(), Poll::Ready(expected));
        assert_eq!(Waiter::new(&shim).poll_now(), Poll::Ready(expected));
    });
}

/// An executor may drop a task, with the handles that the task owns, when its last waker is dropped.
#[test]
fn waker_that_is_replaced_or_removed_may_drop_another_handle() {
    model(|| {
        let shim = new_shim();
        let owning_waker = || {
            let mut owned = Waiter::new(&shim);
            let _ = owned.poll_now();
            let owned = std::sync::Mutex::new(Some(owned));
            waker_with(|| {}, move || drop(owned.lock().unwrap().take()))
        };
        let mut waiter = Waiter::new(&shim);
        let resolving = Arc::clone(&shim);
        assert!(waiter.poll(&owning_waker()).is_pending());
        let thread = thread::spawn(move || resolve(&resolving, exit_with(3)));
        let _ = waiter.poll(&owning_waker());
        drop(waiter);
        assert!(thread.join().unwrap());
    });
}
