//! The system calls that the benchmark makes itself.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Longer than any run.
const SLEEP_SECONDS: &str = "1000";

/// A program that does nothing until it is killed.
pub(crate) fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg(SLEEP_SECONDS);
    command
}

pub(crate) fn raise_limit_on_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

pub(crate) fn kill(pid: u32) {
    signal::kill(number(pid), Signal::SIGKILL).unwrap();
}

/// Whether a child has been collected.
pub(crate) fn is_collected(pid: u32) -> bool {
    signal::kill(number(pid), None) == Err(Errno::ESRCH)
}

/// Blocks until a child has ended, and collects it.
pub(crate) fn wait(pid: u32) {
    while waitpid(number(pid), None) == Err(Errno::EINTR) {}
}

/// Collects a child if it has ended.
pub(crate) fn try_wait(pid: u32) -> bool {
    waitpid(number(pid), Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive)
}

pub(crate) fn pidfd_open(pid: u32) -> OwnedFd {
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd).unwrap();
    // SAFETY: the kernel has just created this descriptor and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd.try_into().unwrap()) }
}

/// What `fd` reports of `events` now; a hangup is always reported.
pub(crate) fn poll_now(fd: &OwnedFd, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    match poll(&mut fds, PollTimeout::ZERO) {
        // By a handler of SIGCHLD.
        Err(Errno::EINTR) => PollFlags::empty(),
        found => found.map(|_| fds[0].revents().unwrap()).unwrap(),
    }
}

fn number(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap())
}
