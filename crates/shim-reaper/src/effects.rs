use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

use crate::ShimExit;
use crate::exits::Subscribers;
use crate::shim::State;

/// What slices of a sweep owe to the world outside the registry. Made before the registry is
/// locked and delivered after that, also when a slice panics: wakers and log subscribers may run
/// any code.
#[derive(Debug)]
pub(crate) struct Effects<'a, P> {
    subscribers: &'a Subscribers,
    pub(crate) wakers: Vec<Waker>,
    exits: Vec<ShimExit>,
    closing: Vec<P>,
}

/// How many pidfds of collected shims may stay open until the next slice. Closing one takes about
/// as long as waking somebody: whoever awaits the shim goes first.
const CLOSE_LATER: usize = 16;

impl<'a, P> Effects<'a, P> {
    pub(crate) fn new(subscribers: &'a Subscribers) -> Self {
        Self {
            subscribers,
            wakers: Vec::new(),
            exits: Vec::new(),
            closing: Vec::new(),
        }
    }

    /// Resolves a shim's handles, and publishes its exit unless that has been done before.
    ///
    /// Both happen under the lock of the shim's state: every reader has the exit by the time that
    /// a handle can show it.
    pub(crate) fn resolve(&mut self, state: &mut State<P>, exit: ShimExit) {
        if state.resolve(exit, &mut self.wakers) {
            self.subscribers.publish(exit, &mut self.wakers);
            self.exits.push(exit);
        }
    }

    /// Closes a pidfd, by the end of the next interval sweep at the latest.
    pub(crate) fn close(&mut self, pidfd: P) {
        self.closing.push(pidfd);
    }

    pub(crate) fn close_pidfds(&mut self) {
        self.closing.clear();
    }

    pub(crate) fn deliver(&mut self) {
        for waker in self.wakers.drain(..) {
            // One panicking waker must not keep the others from being woken.
            if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                tracing::error!("a waker panicked; its task may not learn of an exit");
            }
        }
        for exit in self.exits.drain(..) {
            tracing::debug!(
                pid = exit.pid,
                code = exit.code(),
                signal = exit.signal(),
                collected_by = ?exit.collected_by,
                "shim ended"
            );
        }
        if self.closing.len() > CLOSE_LATER {
            self.close_pidfds();
        }
    }
}

impl<P> Drop for Effects<'_, P> {
    fn drop(&mut self) {
        self.deliver();
    }
}
