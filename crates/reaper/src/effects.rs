use std::task::Waker;

use crate::ShimExit;
use crate::exits::Subscribers;
use crate::shim::State;

/// What a slice of a sweep owes to the world outside the registry. Declared before the registry is
/// locked, so that it is delivered after the lock is released, also when the slice panics: wakers
/// and subscribers may run any code.
#[derive(Debug)]
pub(crate) struct Effects<'a, P> {
    subscribers: &'a Subscribers,
    pub(crate) wakers: Vec<Waker>,
    exits: Vec<(u64, ShimExit)>,
    /// Pidfds of collected shims: closing one costs about as much as reaping it, and can wait.
    pub(crate) closing: Vec<P>,
}

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
    pub(crate) fn resolve(&mut self, state: &mut State<P>, exit: ShimExit) {
        if state.is_running() {
            self.exits.push((self.subscribers.next_number(), exit));
            state.resolve(exit, &mut self.wakers);
        }
    }
}

impl<P> Drop for Effects<'_, P> {
    fn drop(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
        if !self.exits.is_empty() {
            self.subscribers.publish(&self.exits);
            for (_, exit) in &self.exits {
                tracing::debug!(
                    pid = exit.pid,
                    code = exit.code(),
                    signal = exit.signal(),
                    collected_by = ?exit.collected_by,
                    "shim ended"
                );
            }
        }
    }
}
