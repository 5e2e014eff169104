//! What a child lets its owner do.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc;
use std::thread;

use common::{eventually, exists, shell, state_of};
use nix::libc;
use pidfd_spawn::{Child, Command, Stdio};

fn sleeper() -> Child {
    Command::new("sleep").arg("300").spawn().unwrap()
}

#[test]
fn wait_returns_the_exit_code_again_and_again() {
    let mut child = shell("exit 42").spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));
    assert_eq!(child.wait().unwrap().code(), Some(42));
    assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(42));
    assert!(!exists(child.id()));
}

#[test]
fn a_signal_is_the_status_of_a_killed_child() {
    let mut child = sleeper();
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    // As with std.
    child.kill().unwrap();
}

#[test]
fn a_signal_can_be_sent() {
    let mut child = sleeper();
    child.send_signal(libc::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    let error = child.send_signal(libc::SIGTERM).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
}

#[test]
fn a_core_dump_is_part_of_the_status() {
    let mut command = shell("kill -QUIT $$");
    let dir = tempfile::tempdir().unwrap();
    let status = command.current_dir(dir.path()).status().unwrap();
    let expected = std::process::Command::new("/bin/sh")
        .args(["-c", "kill -QUIT $$"])
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert_eq!(status, expected);
}

#[test]
fn wait_closes_the_input_first() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait()));
    let status = receiver.recv_timeout(common::DEADLINE).unwrap();
    assert!(status.unwrap().success());
}

#[test]
fn dropping_neither_kills_nor_waits() {
    let child = sleeper();
    let pid = child.id();
    let pidfd = child.into_pidfd();
    assert!(matches!(state_of(pid), Some('S' | 'R')));
    // SAFETY: kills the child, which has not been waited for.
    unsafe {
        libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL);
    }
    eventually("the child is a zombie", || state_of(pid) == Some('Z'));
    drop(pidfd);
    assert_eq!(state_of(pid), Some('Z'));
    nix::sys::wait::waitpid(
        nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()),
        None,
    )
    .unwrap();
}

#[test]
fn a_child_can_be_taken_apart() {
    let mut command = shell("read line; exit 3");
    let child = command.stdin(Stdio::piped()).spawn().unwrap();
    let number = child.pidfd().as_raw_fd();
    assert_eq!(child.as_fd().as_raw_fd(), number);
    let mut parts = child.into_parts();
    assert!(exists(parts.pid));
    assert_eq!(parts.pidfd.as_raw_fd(), number);
    assert!(parts.stdout.is_none() && parts.stderr.is_none());
    drop(parts.stdin.take());
    let status = wait_for(&parts.pidfd);
    assert_eq!(status, 3);
}

fn wait_for(pidfd: &OwnedFd) -> i32 {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap() {
        WaitStatus::Exited(_, code) => code,
        status => panic!("{status:?}"),
    }
}

#[test]
fn the_pidfd_is_readable_when_the_child_has_exited() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut child = shell("exit 0").spawn().unwrap();
    let mut polled = [PollFd::new(child.pidfd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut polled, PollTimeout::NONE), Ok(1));
    assert!(fs::exists(format!("/proc/{}", child.id())).unwrap());
    assert!(child.try_wait().unwrap().unwrap().success());
}
