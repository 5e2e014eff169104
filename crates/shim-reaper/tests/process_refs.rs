//! `register` and `attach` accept a pid, a `Pidfd` and an `OwnedFd`; a pidfd is the identity of its
//! process also after the pid was recycled.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::pin::pin;
use std::process::Child;
use std::time::Duration;

use common::own_process::in_own_process;
use common::recycled_pid::sleeper_with_pid;
use common::{Fixture, KillOnDrop, exits_on_eof, kernel_is_at_least, sleeper};
use futures::poll;
use nix::libc;
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{Pidfd, ProcessRef, RegisterErrorKind, ShimReaper, Signal};

fn child() -> (Child, u32) {
    let child = exits_on_eof(3).spawn().unwrap();
    let pid = child.id();
    (child, pid)
}

async fn check(process: impl ProcessRef, mut child: Child, attach: bool) {
    let fixture = Fixture::new(ShimReaper::builder());
    let handle = if attach {
        fixture.reaper.attach(process).unwrap()
    } else {
        fixture.reaper.register(process).unwrap()
    };
    assert_eq!(handle.id(), child.id());
    assert_eq!(fixture.reaper.registered(), [child.id()]);
    drop(child.stdin.take());
    assert_eq!(handle.await.unwrap().code(), Some(3));
    if attach {
        child.wait().unwrap();
    }
}

#[tokio::test]
async fn pids_and_pidfds_of_both_types_are_accepted() {
    for attach in [false, true] {
        let (one, pid) = child();
        check(pid, one, attach).await;
        let (one, pid) = child();
        check(Pidfd::open(pid).unwrap(), one, attach).await;
        let (one, pid) = child();
        check(OwnedFd::from(Pidfd::open(pid).unwrap()), one, attach).await;
    }
}

#[tokio::test]
async fn a_pidfd_converts_to_a_descriptor_and_back() {
    let mut children = KillOnDrop::default();
    let pid = children.spawn(sleeper()).unwrap();
    let fd = OwnedFd::from(Pidfd::open(pid).unwrap());
    let pidfd = Pidfd::try_from(fd).unwrap();
    assert_eq!(pidfd.pid(), pid);
    pidfd.send_signal(Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_pidfd_shows_the_exit_of_its_process() {
    let (mut child, pid) = child();
    let pidfd = Pidfd::open(pid).unwrap();
    assert!(!pidfd.has_exited() && !pidfd.is_reaped());
    assert_eq!(pidfd.exit_status(), None);
    assert!(poll!(pin!(pidfd.exited())).is_pending());
    drop(child.stdin.take());
    pidfd.exited().await.unwrap();
    assert!(pidfd.has_exited() && !pidfd.is_reaped());
    let code = || pidfd.exit_status().and_then(|status| status.code());
    assert_eq!(code(), Some(3));
    child.wait().unwrap();
    assert!(pidfd.has_exited() && pidfd.is_reaped());
    // Older kernels do not keep the status for the pidfd.
    assert_eq!(code(), kernel_is_at_least(6, 15).then_some(3));
    let sent = pidfd.send_signal(Signal::SIGKILL);
    assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::ESRCH));
}

#[test]
fn the_number_of_a_pidfd_can_be_zero() {
    in_own_process("the_number_of_a_pidfd_can_be_zero", || {
        let mut children = KillOnDrop::default();
        let pid = children.spawn(sleeper()).unwrap();
        // SAFETY: no code of this process uses stdin.
        unsafe { libc::close(0) };
        assert_eq!(Pidfd::open(pid).unwrap().as_fd().as_raw_fd(), 0);
    });
}

#[tokio::test]
async fn descriptors_that_are_not_pidfds_are_refused() {
    let fixture = Fixture::new(ShimReaper::builder());
    let file = OwnedFd::from(File::open("/dev/null").unwrap());
    let error = Pidfd::try_from(file.try_clone().unwrap()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let mut children = KillOnDrop(Vec::new());
    children.0.push(sleeper().spawn().unwrap());
    let first_thread = thread_pidfd(children.0[0].id());
    for fd in [Some(file), pidfd_of_a_thread(), first_thread]
        .into_iter()
        .flatten()
    {
        let error = fixture.reaper.register(fd).unwrap_err();
        assert_eq!(
            (error.pid(), error.kind()),
            (0, RegisterErrorKind::NotAPidfd)
        );
        assert!(!error.to_string().contains("pid 0"), "{error}");
    }
    let error = fixture
        .reaper
        .register(Pidfd::open(std::process::id()).unwrap());
    assert_eq!(error.unwrap_err().kind(), RegisterErrorKind::ThisProcess);

    let (mut child, pid) = child();
    let fd = OwnedFd::from(Pidfd::open(pid).unwrap());
    drop(child.stdin.take());
    child.wait().unwrap();
    let error = fixture.reaper.attach(fd).unwrap_err();
    assert_eq!(error.kind(), RegisterErrorKind::Reaped);
    assert!(!error.to_string().contains("pid 0"), "{error}");
    assert!(fixture.reaper.registered().is_empty());
}

/// The thread runs until the process ends. Returns `None` before Linux 6.9.
fn pidfd_of_a_thread() -> Option<OwnedFd> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // SAFETY: takes and returns integers.
        sender.send(unsafe { libc::gettid() }).unwrap();
        loop {
            std::thread::park();
        }
    });
    let tid: i32 = receiver.recv().unwrap();
    thread_pidfd(u32::try_from(tid).unwrap())
}

fn thread_pidfd(tid: u32) -> Option<OwnedFd> {
    // SAFETY: takes and returns integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, libc::PIDFD_THREAD) };
    let fd = i32::try_from(fd).unwrap();
    // SAFETY: the kernel has just created this descriptor.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// With the new process registered before, after, and not at all.
#[tokio::test]
async fn the_pidfd_of_an_earlier_process_is_never_that_of_the_new_one() {
    for attach in [false, true] {
        let builder = ShimReaper::builder().sweep_interval(Duration::from_millis(20));
        let fixture = Fixture::new(builder);
        let (mut old, pid) = child();
        let [first, second] = [(); 2].map(|()| Pidfd::open(pid).unwrap());
        drop(old.stdin.take());
        old.wait().unwrap();
        let Some(new) = sleeper_with_pid(pid) else {
            return;
        };
        let register = |pidfd: Pidfd| {
            if attach {
                fixture.reaper.attach(pidfd).unwrap()
            } else {
                fixture.reaper.register(pidfd).unwrap()
            }
        };
        let before = register(first);
        let new_handle = fixture.reaper.register(new).unwrap();
        let after = register(second);
        for old_handle in [before, after] {
            let exit = old_handle.wait().await.unwrap();
            if kernel_is_at_least(6, 15) {
                assert_eq!(exit.code(), Some(3));
            }
            assert!(old_handle.send_signal(Signal::SIGKILL).is_err());
        }
        // The new one is still registered, and stopped with the others.
        assert_eq!(fixture.reaper.registered(), [pid]);
        assert!(new_handle.try_wait().unwrap().is_none());
        fixture.reaper.stop_all(Duration::from_secs(60)).await;
        let exit = new_handle.wait().await.unwrap();
        assert_eq!(exit.signal(), Some(SIGTERM as i32));
    }
}

/// The reaper has no pidfds of its own, and the process of the caller's is gone.
#[tokio::test]
async fn without_pidfds_that_of_an_earlier_process_is_not_found() {
    let fixture = Fixture::new(ShimReaper::builder().pidfd(false));
    let (mut old, pid) = child();
    let pidfd = Pidfd::open(pid).unwrap();
    drop(old.stdin.take());
    old.wait().unwrap();
    let Some(new) = sleeper_with_pid(pid) else {
        return;
    };
    let exit = fixture.reaper.register(pidfd).unwrap().await.unwrap();
    assert_eq!(exit.status, None);
    common::kill(new, SIGKILL);
    let status = waitpid(common::as_pid(new), None).unwrap();
    assert!(matches!(status, WaitStatus::Signaled(..)));
}
