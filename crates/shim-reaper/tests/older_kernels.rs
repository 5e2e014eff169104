//! The reaper works on kernels without the newer system calls, which a filter refuses here.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::thread;

use common::own_process::{block_on, in_own_process};
use common::seccomp::{Argument::Equals, refuse};
use common::{Fixture, as_pid, eventually, exits_with, is_gone, kernel_is_at_least, sleeper};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::wait::waitpid;
use shim_reaper::{CollectedBy, Command, ShimReaper};

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
                    assert_eq!(exit.collected_by, CollectedBy::Reaper);
                }
                let shim = fixture.reaper.spawn(sleeper()).unwrap();
                fixture.sweeps(2).await;
                assert!(shim.is_running());
                common::kill(shim.id(), SIGKILL);
                // Unless the reaper comes first.
                let _ = waitpid(as_pid(shim.id()), None);
                let exit = shim.await.unwrap();
                if exit.collected_by == CollectedBy::Reaper || kernel_is_at_least(6, 15) {
                    assert_eq!(exit.signal(), Some(9));
                }
            });
        },
    );
}

/// A sweep opens the pidfd of the first child, on a thread without the filter.
#[test]
fn filter_of_one_thread_does_not_keep_the_reaper_from_pidfds() {
    const TEST: &str = "filter_of_one_thread_does_not_keep_the_reaper_from_pidfds";
    in_own_process(TEST, || {
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder());
            let start = || sleeper().spawn();
            let (child, reaper) = (start().unwrap(), fixture.reaper.clone());
            let register = thread::spawn(move || {
                refuse(libc::SYS_pidfd_open, 1, Equals(0), Errno::EPERM);
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
        });
    });
}

/// A native child has a pidfd even then, but the reaper has no use for it.
#[test]
fn no_child_has_a_pidfd_before_pidfds_can_be_opened() {
    in_own_process("no_child_has_a_pidfd_before_pidfds_can_be_opened", || {
        refuse(libc::SYS_pidfd_open, 1, Equals(0), Errno::ENOSYS);
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder());
            let std = fixture.reaper.spawn(sleeper()).unwrap();
            let mut command = Command::new("sleep");
            let native = fixture.reaper.spawn(command.arg("1000")).unwrap();
            assert_eq!(fixture.reaper.stats().without_pidfd, 2);
            for shim in [std, native] {
                let pid = shim.id();
                assert_eq!(shim.kill().await.unwrap().signal(), Some(9));
                eventually("the shim is reaped", || is_gone(pid)).await;
            }
            fixture.expect(2, 0, 0).await;
        });
    });
}
