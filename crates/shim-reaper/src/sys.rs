//! All `unsafe` code: the Linux system calls that neither std nor nix wraps, and the registration
//! of borrowed descriptors with tokio. Those that `pidfd-spawn` makes too are there.

#![allow(unsafe_code)]

mod early_pidfd;
pub(crate) mod init;
mod ring;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::process::ExitStatus;
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use pidfd_spawn::__private::{self, PIDFD_INFO_EXIT, PidfdInfo};
pub(crate) use pidfd_spawn::__private::{WaitFor, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[cfg(any(test, fuzzing))]
pub(crate) use early_pidfd::parse_descriptor_table_size;
pub(crate) use early_pidfd::{receive_report, report_before_exec};
pub(crate) use ring::{Completion, Ring};

use crate::{ResourceUsage, Signal};

/// The exit of a child, as `waitid(2)` reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildExit {
    pub(crate) status: ExitStatus,
    /// `None` if io_uring has reaped it, which does not report it.
    pub(crate) usage: Option<ResourceUsage>,
}

/// Sends a signal: `pidfd_send_signal(2)`, Linux 5.1. With `None` it only checks that the process
/// has not been reaped.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Option<Signal>) -> io::Result<()> {
    __private::pidfd_send_signal(pidfd, signal.map_or(0, Signal::as_raw), 0)
}

/// Returns whether the process has been reaped. A process that may not be signalled has not.
pub(crate) fn pidfd_is_reaped(pidfd: BorrowedFd<'_>) -> bool {
    let sent = pidfd_send_signal(pidfd, None);
    sent.is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH))
}

/// Sends a signal to every process in the process group that the process leads or has led:
/// `PIDFD_SIGNAL_PROCESS_GROUP`, Linux 6.9. With `None` it only checks that there is one. Fails with
/// `EINVAL` on older kernels.
pub(crate) fn pidfd_signal_group(leader: BorrowedFd<'_>, signal: Option<Signal>) -> io::Result<()> {
    let signal = signal.map_or(0, Signal::as_raw);
    __private::pidfd_send_signal(leader, signal, PIDFD_SIGNAL_PROCESS_GROUP)
}

const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// Sends a signal by pid: `kill(2)`.
pub(crate) fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: takes two integers and touches no memory of this process.
    if unsafe { libc::kill(pid, signal.as_raw()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal to every process in a process group by its number: `kill(2)`. With `None` it only
/// checks that there is one.
pub(crate) fn kill_group(pgid: u32, signal: Option<Signal>) -> io::Result<()> {
    let pgid = libc::pid_t::try_from(pgid).map_err(io::Error::other)?;
    // SAFETY: takes two integers and touches no memory of this process.
    if unsafe { libc::kill(-pgid, signal.map_or(0, Signal::as_raw)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns whether the process is a zombie or reaped; its pidfd is then readable.
pub(crate) fn pidfd_has_exited(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Returns whether the kernel reports the exit of a process by its pidfd: Linux 5.3. A pidfd of Linux 5.2
/// looks always ready, also for writing, as a file does that cannot be polled.
pub(crate) fn pidfd_can_be_polled(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::POLLOUT)];
    let ready = loop {
        match poll(&mut polled, PollTimeout::ZERO) {
            // Without an event, a pending signal interrupts even this poll.
            Err(Errno::EINTR) => {}
            ready => break ready,
        }
    };
    let is_writable = polled[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLOUT));
    ready.is_ok() && !is_writable
}

/// Returns whether [`pidfd_has_exited`] may be true for one of the pidfds, with one system call.
pub(crate) fn any_pidfd_has_exited<'a>(pidfds: impl Iterator<Item = BorrowedFd<'a>>) -> bool {
    let polled = pidfds.map(|pidfd| PollFd::new(pidfd, PollFlags::POLLIN));
    let mut polled: Vec<_> = polled.collect();
    poll(&mut polled, PollTimeout::ZERO) != Ok(0)
}

/// Waits until the process is a zombie or reaped, or `deadline` has passed. Returns whether it is.
pub(crate) fn pidfd_await_exit(pidfd: BorrowedFd<'_>, deadline: Option<Instant>) -> bool {
    await_event(pidfd, PollFlags::POLLIN, deadline)
}

/// Waits until the descriptor has one of the events, or `deadline` has passed. Returns whether it has.
pub(crate) fn await_event(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> bool {
    loop {
        let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => Ok(PollTimeout::ZERO),
            // Rounded up, so that the last poll does not end early.
            Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)),
            None => Ok(PollTimeout::NONE),
        };
        let mut polled = [PollFd::new(fd, events)];
        let ready = poll(&mut polled, timeout.unwrap_or(PollTimeout::MAX));
        let interrupted = ready == Err(Errno::EINTR);
        if !interrupted && (ready != Ok(0) || deadline.is_some_and(|at| at <= Instant::now())) {
            return ready.is_ok_and(|ready| ready > 0);
        }
    }
}

/// Waits for an exited child without blocking. With `keep_zombie` the zombie stays waitable (`WNOWAIT`).
pub(crate) fn waitid(target: WaitFor<'_>, keep_zombie: bool) -> io::Result<Option<ChildExit>> {
    let flags = if keep_zombie { libc::WNOWAIT } else { 0 };
    let found = __private::waitid(target, flags | libc::WNOHANG)?;
    Ok(found.map(|(status, usage)| ChildExit {
        status,
        usage: Some(ResourceUsage::from_raw(&usage)),
    }))
}

/// Returns whether any child has exited. Leaves it waitable, and does not return which: the only wait for
/// any child.
pub(crate) fn has_zombie() -> bool {
    matches!(waitid(WaitFor::Any, true), Ok(Some(_)))
}

/// Returns the time since boot in the unit of start times: `proc_pid_stat(5)`.
pub(crate) fn ticks_since_boot() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        // Every child that is seen now has started before.
        return u64::MAX;
    };
    // SAFETY: takes an integer.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    let (seconds, nanos) = (now.tv_sec() as u64, now.tv_nsec() as u64);
    seconds * per_second + nanos * per_second / 1_000_000_000
}

/// Returns the wait status of a process that any wait has reaped: `PIDFD_GET_INFO` with
/// `PIDFD_INFO_EXIT`, Linux 6.15. Returns `None` before that, and on older kernels.
pub(crate) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<ExitStatus> {
    PidfdInfo::get(pidfd, PIDFD_INFO_EXIT).ok()?.exit_status()
}

/// Returns the pid of a process: `PIDFD_GET_INFO`, Linux 6.13. Fails with ESRCH if it has been
/// reaped, and with `InvalidInput` if it is a thread. Returns `None` on older kernels, and for a
/// descriptor that is not a pidfd.
pub(crate) fn pidfd_pid(pidfd: BorrowedFd<'_>) -> Option<io::Result<u32>> {
    // A pidfd of the first thread of a process has the pid of the process.
    if fcntl(pidfd, FcntlArg::F_GETFL).is_ok_and(|flags| flags & libc::PIDFD_THREAD as i32 != 0) {
        return Some(Err(io::ErrorKind::InvalidInput.into()));
    }
    // The kernel returns the pids without a request for them.
    match PidfdInfo::get(pidfd, 0) {
        Ok(info) if info.pid == info.tgid => Some(Ok(info.pid)),
        Ok(_) => Some(Err(io::ErrorKind::InvalidInput.into())),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Some(Err(error)),
        Err(_) => None,
    }
}

/// Returns true if the kernel reaps children itself: SIGCHLD is ignored, or `SA_NOCLDWAIT` is set.
pub(crate) fn kernel_reaps_children() -> bool {
    let mut current = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action the call only writes the current one, to a valid pointer.
    if unsafe { libc::sigaction(libc::SIGCHLD, ptr::null(), current.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: all-zero is a valid sigaction, and the call has filled it.
    let current = unsafe { current.assume_init() };
    current.sa_sigaction == libc::SIG_IGN || current.sa_flags & libc::SA_NOCLDWAIT != 0
}

/// Registers a descriptor for reading with the current tokio runtime.
pub(crate) fn poll_readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a `BorrowedFd` stays open for its lifetime, which the result shares.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use nix::sys::signal::{
        SaFlags, SigAction, SigHandler, SigSet, Signal as NixSignal, sigaction,
    };

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn signal_to_a_group_that_does_not_exist_fails() {
        let sent = kill_group(i32::MAX as u32, None);
        assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn pidfd_can_be_polled_unlike_a_file() {
        let pidfd = pidfd_open(std::process::id()).unwrap();
        assert!(pidfd_can_be_polled(pidfd.as_fd()));
        // As the kernel treats a pidfd of Linux 5.2.
        let file = File::open("/proc/self/stat").unwrap();
        assert!(!pidfd_can_be_polled(file.as_fd()));
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn signals_do_not_make_a_pidfd_look_unsupported() {
        extern "C" fn ignore(_: libc::c_int) {}
        let handler = SigHandler::Handler(ignore);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing. No other test uses the signal.
        unsafe { sigaction(NixSignal::SIGURG, &action) }.unwrap();
        let pidfd = pidfd_open(std::process::id()).unwrap();
        // SAFETY: takes no arguments.
        let thread = unsafe { libc::pthread_self() };
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: the thread ends after this one.
                    unsafe { libc::pthread_kill(thread, libc::SIGURG) };
                }
            });
            let seen = (0..20_000).all(|_| pidfd_can_be_polled(pidfd.as_fd()));
            stop.store(true, Ordering::Relaxed);
            assert!(seen);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls")]
    fn time_since_boot_has_the_unit_of_start_times() {
        let before = ticks_since_boot();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let after = ticks_since_boot();
        let stat = crate::kernel::ProcStat::read(child.id()).unwrap().unwrap();
        child.wait().unwrap();
        assert!((before..=after).contains(&stat.start_time));
    }
}
