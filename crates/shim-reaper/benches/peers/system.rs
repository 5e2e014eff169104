//! The system calls of the benchmark.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{self, SigHandler, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Longer than any run of the benchmark.
const SLEEP_SECONDS: &str = "1000";

/// Returns a command that sleeps until it is killed.
pub(crate) fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg(SLEEP_SECONDS);
    command
}

/// Returns the same as a command of the reaper.
pub(crate) fn sleeper_of_reaper() -> shim_reaper::Command {
    let mut command = shim_reaper::Command::new("sleep");
    command.arg(SLEEP_SECONDS);
    command
}

pub(crate) fn raise_limit_on_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

pub(crate) fn kill(pid: u32) {
    signal::kill(as_pid(pid), Signal::SIGKILL).unwrap();
}

/// Returns whether a child is reaped.
pub(crate) fn is_reaped(pid: u32) -> bool {
    signal::kill(as_pid(pid), None) == Err(Errno::ESRCH)
}

/// Blocks until a child has exited, and reaps it.
pub(crate) fn wait(pid: u32) {
    while waitpid(as_pid(pid), None) == Err(Errno::EINTR) {}
}

/// Reaps a child if it has exited. Returns whether it did.
pub(crate) fn try_wait(pid: u32) -> bool {
    waitpid(as_pid(pid), Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive)
}

pub(crate) fn pidfd_open(pid: u32) -> OwnedFd {
    // SAFETY: takes two integers and touches no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd).unwrap();
    // SAFETY: the kernel has just created this descriptor and no other code has it.
    unsafe { OwnedFd::from_raw_fd(fd.try_into().unwrap()) }
}

/// Makes the child enter a control group. `processes` is its `cgroup.procs`.
pub(crate) fn enter_control_group(command: &mut Command, processes: File) {
    // SAFETY: the closure only makes a system call, on memory of its own.
    unsafe {
        command.pre_exec(move || {
            // 0 is the writing process.
            Errno::result(libc::write(processes.as_raw_fd(), c"0".as_ptr().cast(), 1))?;
            Ok(())
        });
    }
}

pub(crate) fn is_root() -> bool {
    // SAFETY: takes nothing and returns an integer.
    unsafe { libc::geteuid() == 0 }
}

pub(crate) fn ignore_sigchld() {
    // SAFETY: installs no handler function.
    unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }.unwrap();
}

/// Polls `fd` for `events` without blocking. A hangup is always reported.
pub(crate) fn poll_now(fd: &OwnedFd, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    match poll(&mut fds, PollTimeout::ZERO) {
        // A SIGCHLD handler interrupted the call.
        Err(Errno::EINTR) => PollFlags::empty(),
        result => result.map(|_| fds[0].revents().unwrap()).unwrap(),
    }
}

fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap())
}
