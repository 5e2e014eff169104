//! A child of tokio is only ever reaped through tokio, which knows it by its pid.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs;
use std::mem::MaybeUninit;
use std::ptr;

use common::own_process::{block_on, in_own_process};
use common::recycled_pid::sleeper_with_pid;
use common::{Fixture, eventually, eventually_blocking, is_gone};
use nix::libc;
use nix::sys::signal::Signal::SIGTERM;
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{ReapedBy, ShimReaper};
use tokio::process::{Child, Command};

fn spawn(script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script]).kill_on_drop(true);
    command.spawn().unwrap()
}

/// tokio would kill the process that got the pid.
#[test]
fn a_tokio_child_that_a_foreign_wait_has_reaped_is_not_killed_by_pid() {
    in_own_process(
        "a_tokio_child_that_a_foreign_wait_has_reaped_is_not_killed_by_pid",
        || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let entered = runtime.enter();
            let fixture = Fixture::new(ShimReaper::builder());
            let child = spawn("exec sleep 1000");
            let handle = fixture.reaper.register_child(child).unwrap();
            drop(entered);
            // The reaper does not run before the pid is that of another process.
            handle.start_kill().unwrap();
            waitpid(common::as_pid(handle.id()), None).unwrap();
            let Some(other) = sleeper_with_pid(handle.id()) else {
                return;
            };
            let exit = runtime.block_on(handle.wait()).unwrap();
            assert_eq!(exit.reaped_by, ReapedBy::ForeignWait);
            runtime.block_on(fixture.expect(0, 1, 0));
            drop((handle, fixture, runtime));
            common::kill(other, SIGTERM);
            let other = common::as_pid(other);
            let status = waitpid(other, None).unwrap();
            assert_eq!(status, WaitStatus::Signaled(other, SIGTERM, false));
        },
    );
}

/// A `Child` that is dropped before tokio has reaped it makes tokio install a handler of SIGCHLD, and
/// one that is leaked leaves its descriptor open.
#[test]
fn registered_tokio_children_leave_nothing_behind() {
    in_own_process("registered_tokio_children_leave_nothing_behind", || {
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder());
            let mut counts = Vec::new();
            for _ in 0..2 {
                for code in 0..50 {
                    let child = spawn(&format!("exit {code}"));
                    let handle = fixture.reaper.register_child(child).unwrap();
                    assert_eq!(handle.await.unwrap().code(), Some(code));
                }
                // The reaper closes its pidfds later.
                fixture.sweeps(2).await;
                counts.push(fs::read_dir("/proc/self/fd").unwrap().count());
            }
            assert_eq!(counts[0], counts[1]);
            fixture.expect(100, 0, 0).await;
        });
        assert_eq!(sigchld_handler(), libc::SIG_DFL);
    });
}

/// The tokio runtime of the children does not run: the reaper does not depend on it.
#[test]
fn tokio_children_are_reaped_while_their_tokio_runtime_is_blocked() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    let child = {
        let _entered = runtime.enter();
        spawn("exit 4")
    };
    let pid = child.id().unwrap();
    let handle = reaper.register_child(child).unwrap();
    assert_eq!(handle.wait_blocking().unwrap().code(), Some(4));
    eventually_blocking("it is gone", || is_gone(pid));
}

/// The reaper finds the zombie in a sweep, and by its pid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_children_are_reaped_through_tokio_without_pidfds() {
    let fixture = Fixture::new(ShimReaper::builder().pidfd(false));
    let child = spawn("read line; exit 6");
    let pid = child.id().unwrap();
    let handle = fixture.reaper.register_child(child).unwrap();
    let exit = handle.await.unwrap();
    assert_eq!((exit.code(), exit.reaped_by), (Some(6), ReapedBy::Reaper));
    eventually("it is gone", || is_gone(pid)).await;
    fixture.expect(1, 0, 0).await;
}

fn sigchld_handler() -> libc::sighandler_t {
    let mut current = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action the call only writes the current one, to a valid pointer; it is
    // a plain structure, which all-zero is a valid value of.
    unsafe {
        libc::sigaction(libc::SIGCHLD, ptr::null(), current.as_mut_ptr());
        current.assume_init().sa_sigaction
    }
}
