use std::io;
use std::task::Waker;

use crate::ShimExit;
use crate::exits::Subscribers;
use crate::shim::State;
use crate::wake_all::wake_all;

/// The maximum number of pidfds of finished shims that stay open until the next slice. Closing a
/// pidfd takes about as long as waking a task, and the tasks that await the shim come first.
const MAX_DEFERRED_CLOSES: usize = 16;

/// The effects of a slice that are deferred until the registry is unlocked: wakers and log
/// subscribers may run any code.
///
/// Create it before the registry is locked. It is delivered on drop, also if a slice panics.
#[derive(Debug)]
pub(crate) struct Outbox<P> {
    pub(crate) wakers: Vec<Waker>,
    log: Vec<LogLine>,
    pidfds: Vec<P>,
}

/// What a slice has to log.
#[derive(Debug)]
pub(crate) enum LogLine {
    Ended(ShimExit),
    ForeignWait { pid: u32 },
    CannotReadEvents(io::Error),
    CannotWatchAgain(io::Error),
}

impl<P> Outbox<P> {
    pub(crate) fn new() -> Self {
        Self {
            wakers: Vec::new(),
            log: Vec::new(),
            pidfds: Vec::new(),
        }
    }

    /// Resolves the handles of a shim and publishes its exit, unless that was done before.
    ///
    /// Both happen under the lock of the shim's state, so that every stream has the exit before a
    /// handle can show it.
    pub(crate) fn resolve(
        &mut self,
        subscribers: &Subscribers,
        state: &mut State<P>,
        exit: ShimExit,
    ) {
        if state.resolve(exit, &mut self.wakers) {
            subscribers.publish(exit, &mut self.wakers);
            self.log(LogLine::Ended(exit));
        }
    }

    /// Logs a line once the locks are released.
    pub(crate) fn log(&mut self, line: LogLine) {
        self.log.push(line);
    }

    /// Closes a pidfd later, at the end of the next interval sweep at the latest.
    pub(crate) fn close(&mut self, pidfd: P) {
        self.pidfds.push(pidfd);
    }

    pub(crate) fn close_pidfds(&mut self) {
        self.pidfds.clear();
    }

    /// Wakes the tasks and logs the lines. The caller must not hold a lock.
    pub(crate) fn deliver(&mut self) {
        wake_all(self.wakers.drain(..));
        for line in self.log.drain(..) {
            line.write();
        }
        if self.pidfds.len() > MAX_DEFERRED_CLOSES {
            self.close_pidfds();
        }
    }
}

impl LogLine {
    pub(crate) fn write(self) {
        match self {
            Self::Ended(exit) => tracing::debug!(
                pid = exit.pid,
                code = exit.code(),
                signal = exit.signal(),
                reaped_by = ?exit.reaped_by,
                "shim ended"
            ),
            Self::ForeignWait { pid } => tracing::warn!(
                pid,
                "a foreign wait reaped a shim; look for code in this process that waits for any \
                 child, or that ignores SIGCHLD"
            ),
            Self::CannotReadEvents(error) => tracing::debug!(%error, "cannot read process events"),
            Self::CannotWatchAgain(error) => {
                tracing::debug!(%error, "cannot re-arm a watch; spot checks replace it");
            }
        }
    }
}

impl<P> Drop for Outbox<P> {
    fn drop(&mut self) {
        self.deliver();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Returns an outbox with this many pidfds of one process, and the process.
    fn with_pidfds(count: usize) -> (Outbox<Arc<()>>, Arc<()>) {
        let (mut outbox, process) = (Outbox::new(), Arc::new(()));
        for _ in 0..count {
            outbox.close(Arc::clone(&process));
        }
        (outbox, process)
    }

    #[test]
    fn pidfds_stay_open_until_the_end_of_the_sweep() {
        let (mut outbox, process) = with_pidfds(MAX_DEFERRED_CLOSES);
        outbox.deliver();
        assert_eq!(Arc::strong_count(&process), 1 + MAX_DEFERRED_CLOSES);
        outbox.close_pidfds();
        assert_eq!(Arc::strong_count(&process), 1);
    }

    #[test]
    fn too_many_pidfds_are_closed_with_their_slice() {
        let (mut outbox, process) = with_pidfds(MAX_DEFERRED_CLOSES + 1);
        outbox.deliver();
        assert_eq!(Arc::strong_count(&process), 1);
    }
}
