use std::collections::{HashMap, VecDeque};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::{self, ExitStatus};
use std::sync::{Arc, PoisonError};
use std::task::Wake;

use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::sys::Completion;
use crate::wake_event::WakeEvent;

/// The requests that make io_uring reap children as they exit: what the dedicated thread, which has the
/// ring, shares with the threads that sweep.
///
/// The kernel reaps only while the dedicated thread is [in the kernel](Self::enter), and the thread
/// publishes what it has reaped when it [leaves](Self::leave). A sweep does not wait for that: it calls
/// `waitid` itself, and whichever comes first has the status. If the call fails because the kernel came
/// first, [`status_of_reaped`](Self::status_of_reaped) waits until the thread has left.
///
/// A pidfd stays open until its request has ended, because the kernel looks up its number when the process
/// has exited.
#[derive(Debug, Default)]
pub(crate) struct ReapRequests {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// `None` while no thread has a ring.
    thread: Option<RingThread>,
    /// Set by a shutdown, after which the kernel must not reap.
    stopped: bool,
    /// Whether the thread may be in a system call that reaps.
    is_in_kernel: bool,
    /// How often the thread has left the kernel.
    departures: u64,
    by_pidfd: HashMap<RawFd, Request>,
    /// Those that the thread has not passed to the kernel.
    queued: Vec<RawFd>,
}

#[derive(Debug)]
struct RingThread {
    wake_event: Arc<WakeEvent>,
    /// The process of the thread. A forked child has a copy of everything but the thread.
    pid: u32,
}

#[derive(Debug)]
enum Request {
    Queued {
        token: u64,
    },
    InFlight {
        token: u64,
    },
    /// In flight, while the shim is finished: another wait has reaped the process.
    Unneeded(#[expect(dead_code, reason = "kept open")] OwnedFd),
    /// The kernel has reaped the process, and no sweep has asked for its status.
    Reaped(ExitStatus),
}

impl ReapRequests {
    /// Accepts requests from now on. `wake_event` makes the calling thread leave the kernel.
    pub(crate) fn open(&self, wake_event: &Arc<WakeEvent>) {
        self.state().thread = Some(RingThread {
            wake_event: Arc::clone(wake_event),
            pid: process::id(),
        });
    }

    /// Requests that the kernel reaps a child as it exits. Returns false if it does not.
    pub(crate) fn add(&self, pidfd: BorrowedFd<'_>, token: u64) -> bool {
        let mut state = self.state();
        if state.thread.is_none() || state.stopped {
            return false;
        }
        let pidfd = pidfd.as_raw_fd();
        state.by_pidfd.insert(pidfd, Request::Queued { token });
        state.queued.push(pidfd);
        // The thread takes the request when it enters the kernel again.
        state.wake_thread();
        true
    }

    /// Returns the status of a process that the kernel has reaped. With `keep` a later call returns it
    /// again.
    pub(crate) fn status(&self, pidfd: BorrowedFd<'_>, keep: bool) -> Option<ExitStatus> {
        self.state().status(pidfd.as_raw_fd(), keep)
    }

    /// Does what [`status`](Self::status) does for a process that some wait has reaped, maybe that of the
    /// kernel at this moment.
    pub(crate) fn status_of_reaped(&self, pidfd: BorrowedFd<'_>, keep: bool) -> Option<ExitStatus> {
        let pidfd = pidfd.as_raw_fd();
        let mut state = self.state();
        if matches!(state.by_pidfd.get(&pidfd), Some(Request::InFlight { .. })) {
            state = self.await_departure(state);
        }
        state.status(pidfd, keep)
    }

    /// Returns the pidfd of a finished shim for closing, or `None` if it is closed later, because its
    /// request is in flight.
    pub(crate) fn release(&self, pidfd: OwnedFd) -> Option<OwnedFd> {
        let mut state = self.state();
        let number = pidfd.as_raw_fd();
        if let Some(Request::InFlight { .. }) = state.by_pidfd.get(&number) {
            state.by_pidfd.insert(number, Request::Unneeded(pidfd));
            return None;
        }
        state.by_pidfd.remove(&number);
        Some(pidfd)
    }

    /// Makes the kernel reap no process that exits from now on. Once this returns, [`status`](Self::status)
    /// returns the status of each that it has reaped.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        // Before it reaps again, the thread sees that it is stopped.
        drop(self.await_departure(state));
    }

    /// Waits until the thread has left the kernel, if it is there.
    fn await_departure<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if !state.wake_thread() {
            return state;
        }
        let departures = state.departures;
        while state.departures == departures {
            state = self
                .left
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// Begins a system call that may reap. Returns the pidfds to reap on exit, in addition to those of
    /// earlier calls, or `None` after a shutdown.
    pub(crate) fn enter(&self) -> Option<Vec<RawFd>> {
        let mut state = self.state();
        if state.stopped {
            return None;
        }
        state.is_in_kernel = true;
        let State {
            by_pidfd, queued, ..
        } = &mut *state;
        let mut queued = mem::take(queued);
        // A queued pidfd may have been released, and its number be that of another one.
        queued.retain(|pidfd| match by_pidfd.get_mut(pidfd) {
            Some(request @ Request::Queued { .. }) => request.mark_in_flight(),
            _ => false,
        });
        Some(queued)
    }

    /// Begins system calls that end all requests.
    pub(crate) fn enter_to_cancel(&self) {
        self.state().is_in_kernel = true;
    }

    /// Ends what [`enter`](Self::enter) has begun. Appends the tokens of requests that have ended.
    pub(crate) fn leave(&self, completions: &[Completion], tokens: &mut VecDeque<u64>) {
        let mut state = self.state();
        let mut unneeded = Vec::new();
        for completion in completions {
            let Completion::Ended(pidfd, status) = *completion else {
                continue;
            };
            match state.by_pidfd.remove(&pidfd) {
                Some(Request::InFlight { token }) => {
                    tokens.push_back(token);
                    if let Some(status) = status {
                        state.by_pidfd.insert(pidfd, Request::Reaped(status));
                    }
                }
                request => unneeded.extend(request),
            }
        }
        state.is_in_kernel = false;
        state.departures += 1;
        drop(state);
        self.left.notify_all();
        // Closes their pidfds.
        drop(unneeded);
    }

    /// Accepts no requests from now on. Appends the tokens of those that the kernel has not ended.
    pub(crate) fn close(&self, tokens: &mut VecDeque<u64>) {
        let mut state = self.state();
        state.thread = None;
        state.queued.clear();
        state.by_pidfd.retain(|_, request| match request {
            Request::Unneeded(_) => false,
            Request::Queued { token } | Request::InFlight { token } => {
                tokens.push_back(*token);
                false
            }
            Request::Reaped(_) => true,
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes the thread leave the kernel. Returns false if it is not there.
    fn wake_thread(&self) -> bool {
        let thread = self.thread.as_ref().filter(|_| self.is_in_kernel);
        let thread = thread.filter(|thread| thread.pid == process::id());
        if let Some(thread) = thread {
            thread.wake_event.wake_by_ref();
        }
        thread.is_some()
    }

    fn status(&mut self, pidfd: RawFd, keep: bool) -> Option<ExitStatus> {
        let Some(Request::Reaped(status)) = self.by_pidfd.get(&pidfd) else {
            return None;
        };
        let status = *status;
        if !keep {
            self.by_pidfd.remove(&pidfd);
        }
        Some(status)
    }
}

impl Request {
    /// Returns whether it was queued.
    fn mark_in_flight(&mut self) -> bool {
        let Self::Queued { token } = *self else {
            return false;
        };
        *self = Self::InFlight { token };
        true
    }
}

#[cfg(test)]
mod tests;
