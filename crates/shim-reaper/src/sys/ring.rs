//! io_uring, for requests that reap children as they exit.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::process::ExitStatus;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};
use nix::libc;
use pidfd_spawn::__private::exit_status;

/// The user data of the request that polls a descriptor which is not a pidfd.
const POLL: u64 = u64::MAX;

/// The user data of requests that cancel others.
const CANCEL: u64 = u64::MAX - 1;

/// An io_uring that reaps children as they exit: `IORING_OP_WAITID`, Linux 6.7.
///
/// The kernel executes the requests only while the thread that created the ring is in one of its methods
/// (`IORING_SETUP_DEFER_TASKRUN`, Linux 6.1). Another thread cannot use the ring.
pub(crate) struct Ring {
    uring: IoUring,
    /// Where the kernel writes the exits, by pidfd. In boxes, because they must not move.
    exits: HashMap<RawFd, Box<UnsafeCell<libc::siginfo_t>>>,
}

/// What the kernel reports about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// The descriptor of [`Ring::poll`] was readable.
    Readable,
    /// The request of [`Ring::reap_on_exit`] for this pidfd has ended. The status is `None` if it did not
    /// reap the process: another wait came first, a tracer holds the process, or it was cancelled.
    Ended(RawFd, Option<ExitStatus>),
}

impl Ring {
    /// Creates a ring for this thread. Any number of requests may be in flight; `entries` limits only how
    /// many of them one system call starts.
    ///
    /// # Errors
    ///
    /// Returns an error on kernels before 6.7, if io_uring is disabled or denied, and if descriptors or
    /// memory are exhausted.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let uring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::WaitId::CODE) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io_uring cannot wait for processes before Linux 6.7",
            ));
        }
        let exits = HashMap::new();
        Ok(Self { uring, exits })
    }

    /// Makes the ring report once that a descriptor is readable. The descriptor stays in use until then.
    pub(crate) fn poll(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN as u32);
        self.push(&[poll.build().user_data(POLL)])
    }

    /// Makes the kernel reap a child once it has exited, and report it as [`Completion::Ended`].
    ///
    /// The caller keeps the pidfd open until then, because the kernel looks up its number only when the
    /// process has exited.
    pub(crate) fn reap_on_exit(&mut self, pidfd: RawFd) -> io::Result<()> {
        // SAFETY: all-zero is a valid siginfo_t: integers and padding.
        let info =
            UnsafeCell::new(unsafe { MaybeUninit::<libc::siginfo_t>::zeroed().assume_init() });
        let info = Box::new(info);
        // The wait alone would wait on a queue of this process that every exit of a child walks. Linked to
        // a poll, it starts when the process has exited, and does not block.
        let poll = opcode::PollAdd::new(Fd(pidfd), libc::POLLIN as u32).build();
        let poll = poll.flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS);
        let options = libc::WEXITED | libc::WNOHANG;
        let wait = opcode::WaitId::new(libc::P_PIDFD, pidfd as libc::id_t, options);
        let wait = wait.infop(info.get()).build();
        // One of the two is reported: the poll if it fails, which cancels the wait.
        let user_data = pidfd as u64;
        self.push(&[poll.user_data(user_data), wait.user_data(user_data)])?;
        self.exits.insert(pidfd, info);
        Ok(())
    }

    /// Starts the requests, and waits until one has ended, a signal has arrived or `timeout` has passed.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timespec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        let mut flags = EnterFlags::empty();
        if self.uring.params().is_feature_no_iowait() {
            // The CPU is idle, and does not wait for a disk.
            flags |= EnterFlags::NO_IOWAIT;
        }
        let entered = self.uring.submitter();
        match entered.submit_with_args_and_flags(1, &args, flags) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes what the kernel has reported. Returns whether it has more, which did not fit into the ring and
    /// which the next [`wait`](Self::wait) makes room for.
    pub(crate) fn take_completions(&mut self, mut take: impl FnMut(Completion)) -> bool {
        for entry in self.uring.completion() {
            match entry.user_data() {
                POLL => take(Completion::Readable),
                CANCEL => {}
                pidfd => {
                    let pidfd = pidfd as RawFd;
                    if let Some(info) = self.exits.remove(&pidfd) {
                        // The kernel writes a pid only if it has reaped the process.
                        let info = info.into_inner();
                        take(Completion::Ended(pidfd, exit_status(&info)));
                    }
                }
            }
        }
        self.uring.submission().cq_overflow()
    }

    /// Cancels all requests. Those that have not reaped a process by now never will, except requests whose
    /// process has exited before. Each is still reported.
    pub(crate) fn cancel_all(&mut self) -> io::Result<()> {
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        self.push(&[cancel.user_data(CANCEL)])?;
        self.uring.submit().map(drop)
    }

    /// Returns whether a request of [`reap_on_exit`](Self::reap_on_exit) is in flight.
    pub(crate) fn is_reaping(&self) -> bool {
        !self.exits.is_empty()
    }

    fn push(&mut self, requests: &[squeue::Entry]) -> io::Result<()> {
        let mut queue = self.uring.submission();
        if queue.capacity() - queue.len() < requests.len() {
            drop(queue);
            self.uring.submit()?;
            queue = self.uring.submission();
        }
        // SAFETY: the only memory that a request refers to is the siginfo_t of a wait, which `exits` keeps
        // until the request has ended.
        unsafe { queue.push_multiple(requests) }.map_err(io::Error::other)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A wait that is still in flight writes its `siginfo_t` when the process exits.
        mem::forget(mem::take(&mut self.exits));
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests = self.exits.len();
        f.debug_struct("Ring")
            .field("requests", &requests)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
