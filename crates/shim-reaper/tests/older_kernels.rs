//! The reaper works on kernels without the newer system calls, which a filter refuses here.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::thread;

use common::own_process::{block_on, in_own_process};
use common::seccomp::{Argument::Equals, refuse};
use common::{
    Fixture, as_pid, eventually, exits_on_eof, exits_with, is_gone, kernel_is_at_least, sleeper,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{self, Signal::SIGKILL};
use nix::sys::wait::waitpid;
use nix::unistd::{Uid, setresuid};
use shim_reaper::{Command, ReapedBy, ShimReaper, Stdio};

/// Linux 5.3 has pidfds but cannot wait by them.
#[test]
fn children_are_reaped_by_pid_before_waits_by_pidfd_exist() {
    in_own_process(
        "children_are_reaped_by_pid_before_waits_by_pidfd_exist",
        || {
            refuse(libc::SYS_waitid, 0, Equals(libc::P_PIDFD), Errno::EINVAL);
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder());
                for code in 0..3 {
                    let exit = fixture
                        .reaper
                        .spawn(exits_with(code))
                        .unwrap()
                        .await
                        .unwrap();
                    assert_eq!(exit.code(), Some(code));
                    assert_eq!(exit.reaped_by, ReapedBy::Reaper);
                }
                let shim = fixture.reaper.spawn(sleeper()).unwrap();
                fixture.sweeps(2).await;
                assert!(shim.is_running());
                common::kill(shim.id(), SIGKILL);
                // Unless the reaper comes first.
                let _ = waitpid(as_pid(shim.id()), None);
                let exit = shim.await.unwrap();
                if exit.reaped_by == ReapedBy::Reaper || kernel_is_at_least(6, 15) {
                    assert_eq!(exit.signal(), Some(9));
                }
            });
        },
    );
}

/// Linux 5.3 cannot wait by pidfd, and the reaper checks with a signal that the pid is still that of the child.
#[test]
fn child_of_another_user_stays_registered_before_waits_by_pidfd_exist() {
    const TEST: &str = "child_of_another_user_stays_registered_before_waits_by_pidfd_exist";
    in_own_process(TEST, || {
        if !Uid::effective().is_root() {
            return eprintln!("SKIPPED: this needs root");
        }
        let child = exits_on_eof(7).spawn().unwrap();
        let user = Uid::from_raw(65534);
        setresuid(user, user, user).unwrap();
        assert_eq!(signal::kill(as_pid(child.id()), None), Err(Errno::EPERM));
        refuse(libc::SYS_waitid, 0, Equals(libc::P_PIDFD), Errno::EINVAL);
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder());
            let shim = fixture.reaper.register_child(child).unwrap();
            fixture.sweeps(2).await;
            fixture.expect(0, 0, 1).await;
            drop(shim.take_stdin());
            assert_eq!(shim.await.unwrap().code(), Some(7));
            fixture.expect(1, 0, 0).await;
        });
    });
}

/// A sweep opens the pidfd of the first child, on a thread without the filter.
#[test]
fn filter_of_one_thread_does_not_keep_the_reaper_from_pidfds() {
    const TEST: &str = "filter_of_one_thread_does_not_keep_the_reaper_from_pidfds";
    in_own_process(TEST, || {
        for errno in [Errno::EPERM, Errno::ENOSYS] {
            block_on(sweep_opens_pidfd_that_a_thread_cannot_open(errno));
        }
    });
}

async fn sweep_opens_pidfd_that_a_thread_cannot_open(errno: Errno) {
    let fixture = Fixture::new(ShimReaper::builder());
    let start = || sleeper().spawn();
    let (child, reaper) = (start().unwrap(), fixture.reaper.clone());
    let register = thread::spawn(move || {
        refuse(libc::SYS_pidfd_open, 1, Equals(0), errno);
        reaper.register_child(child).unwrap()
    });
    let first = register.join().unwrap();
    let second = fixture.reaper.register_child(start().unwrap()).unwrap();
    let has_pidfds = || fixture.reaper.stats().without_pidfd == 0;
    eventually("both shims have pidfds", has_pidfds).await;
    for shim in [first, second] {
        assert_eq!(shim.kill().await.unwrap().signal(), Some(9));
    }
    fixture.expect(2, 0, 0).await;
}

#[test]
fn native_child_has_its_pidfd_where_no_pidfd_can_be_opened() {
    const TEST: &str = "native_child_has_its_pidfd_where_no_pidfd_can_be_opened";
    in_own_process(TEST, || {
        refuse(libc::SYS_pidfd_open, 1, Equals(0), Errno::ENOSYS);
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder());
            let std = fixture.reaper.spawn(sleeper()).unwrap();
            let mut command = Command::new("sleep");
            // A test that fails would otherwise wait for its children.
            command
                .arg("1000")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let [native, stolen] = [(); 2].map(|()| fixture.reaper.spawn(&mut command).unwrap());
            assert_eq!(fixture.reaper.stats().without_pidfd, 1);
            for shim in [std, native] {
                let pid = shim.id();
                assert_eq!(shim.kill().await.unwrap().signal(), Some(9));
                eventually("the shim is reaped", || is_gone(pid)).await;
            }
            common::kill(stolen.id(), SIGKILL);
            // Unless the reaper comes first.
            let _ = waitpid(as_pid(stolen.id()), None);
            let exit = stolen.await.unwrap();
            if exit.reaped_by == ReapedBy::Reaper || kernel_is_at_least(6, 15) {
                assert_eq!(exit.signal(), Some(9));
            }
        });
    });
}
