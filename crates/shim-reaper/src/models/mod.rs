//! Models of what several threads do at the same time. Loom runs each of them in every order in
//! which its threads can lock, and in which the process table can change.
//!
//! ```text
//! RUSTFLAGS='--cfg shim_reaper_loom' cargo test -p shim-reaper --lib --target-dir target/loom models::
//! ```

mod directory;
mod exit_slot;
mod exits;
mod outbox;
mod reap_requests;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use futures::Stream;
use futures::task::noop_waker_ref;

use crate::shim::{Role, Shim};
use crate::{Exits, ReapedBy, ReaperClosed, ShimExit};

type PollExit = Poll<Result<ShimExit, ReaperClosed>>;

fn new_shim() -> Arc<Shim<()>> {
    Arc::new(Shim::new(7, 1, false, Role::Owned, None, None))
}

fn exit_with(code: i32) -> ShimExit {
    ShimExit {
        pid: 7,
        status: Some(ExitStatus::from_raw(code << 8)),
        reaped_by: ReapedBy::Reaper,
        rusage: None,
    }
}

/// Counts how often a waker is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A handle that is polled by hand.
struct Waiter {
    shim: Arc<Shim<()>>,
    key: Option<u32>,
}

impl Waiter {
    fn new(shim: &Arc<Shim<()>>) -> Self {
        Self {
            shim: Arc::clone(shim),
            key: None,
        }
    }

    fn poll(&mut self, waker: &Waker) -> PollExit {
        self.shim.poll_exit(&mut self.key, waker)
    }

    fn poll_now(&mut self) -> PollExit {
        self.poll(noop_waker_ref())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shim.stop_waiting(key);
        }
    }
}

fn poll_next(exits: &mut Exits, waker: &Waker) -> Poll<Option<ShimExit>> {
    std::pin::pin!(exits).poll_next(&mut Context::from_waker(waker))
}

/// Runs a closure when a waker is woken, and another when the last copy of it is dropped, as an
/// executor may.
struct Callbacks<W: Fn(), D: Fn()> {
    on_wake: W,
    on_drop: D,
}

impl<W, D> Wake for Callbacks<W, D>
where
    W: Fn() + Send + Sync + 'static,
    D: Fn() + Send + Sync + 'static,
{
    fn wake(self: Arc<Self>) {
        (self.on_wake)();
    }
}

impl<W: Fn(), D: Fn()> Drop for Callbacks<W, D> {
    fn drop(&mut self) {
        (self.on_drop)();
    }
}

fn waker_with(
    on_wake: impl Fn() + Send + Sync + 'static,
    on_drop: impl Fn() + Send + Sync + 'static,
) -> Waker {
    Waker::from(Arc::new(Callbacks { on_wake, on_drop }))
}
