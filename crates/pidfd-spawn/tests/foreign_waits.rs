//! Other code in the process reaps the children.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::os::unix::process::ExitStatusExt;

use common::own_process::in_own_process;
use common::seccomp::{Refuse, When, refuse};
use common::{Repeat, eventually, exists, kernel_is_at_least, shell, skip};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pidfd_spawn::Command;

const CHILDREN: i32 = 200;

/// Whether the kernel reports the status of a process that another wait has reaped.
fn kernel_reports_lost_statuses() -> bool {
    let reports = kernel_is_at_least(6, 15);
    if !reports {
        skip("before Linux 6.15 the status of a reaped process is lost");
    }
    reports
}

#[test]
fn a_thread_that_waits_for_every_child_takes_no_status() {
    in_own_process(
        "a_thread_that_waits_for_every_child_takes_no_status",
        || {
            if !kernel_reports_lost_statuses() {
                return;
            }
            let _thief = Repeat::start(|| {
                let _ = waitpid(None, Some(WaitPidFlag::WNOHANG));
            });
            for code in 0..CHILDREN {
                let mut child = shell(&format!("exit {code}")).spawn().unwrap();
                let status = child.wait();
                assert_eq!(status.unwrap().code(), Some(code));
                Command::new("/nonexistent").spawn().unwrap_err();
            }
        },
    );
}

#[test]
fn a_status_is_found_after_the_child_was_reaped() {
    in_own_process("a_status_is_found_after_the_child_was_reaped", || {
        if !kernel_reports_lost_statuses() {
            return;
        }
        let mut children = Vec::new();
        for code in 0..3 {
            children.push(shell(&format!("exit {code}")).spawn().unwrap());
        }
        let mut killed = Command::new("sleep").arg("300").spawn().unwrap();
        killed.kill().unwrap();
        while waitpid(None, None) != Err(Errno::ECHILD) {}

        for (code, child) in (0..).zip(&mut children) {
            assert!(!exists(child.id()));
            assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(code));
        }
        assert_eq!(killed.wait().unwrap().signal(), Some(libc::SIGKILL));
    });
}

#[test]
fn without_the_report_of_the_kernel_a_lost_status_is_an_error() {
    const PIDFD_GET_INFO: u32 = 0xC040_FF0B;
    in_own_process(
        "without_the_report_of_the_kernel_a_lost_status_is_an_error",
        || {
            refuse(&[Refuse {
                call: libc::SYS_ioctl,
                when: When::SecondIs(PIDFD_GET_INFO),
                with: Errno::ENOTTY,
            }]);
            let mut child = shell("exit 9").spawn().unwrap();
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 9)));
            for waited in [child.try_wait().map(drop), child.wait().map(drop)] {
                assert_eq!(waited.unwrap_err().raw_os_error(), Some(libc::ECHILD));
            }
        },
    );
}

#[test]
fn a_status_is_found_although_the_kernel_reaps_children() {
    in_own_process(
        "a_status_is_found_although_the_kernel_reaps_children",
        || {
            common::ignore(libc::SIGCHLD);
            let mut child = shell("exit 9").spawn().unwrap();
            let waited = child.wait();
            if kernel_reports_lost_statuses() {
                assert_eq!(waited.unwrap().code(), Some(9));
                let mut child = Command::new("sleep").arg("300").spawn().unwrap();
                assert_eq!(child.try_wait().unwrap(), None);
                child.kill().unwrap();
                eventually("the kernel reaps the child", || {
                    child.try_wait().unwrap().is_some()
                });
            } else {
                assert_eq!(waited.unwrap_err().raw_os_error(), Some(libc::ECHILD));
            }
        },
    );
}
