//! A forked child has a copy of every handle and of the reaper, and disturbs neither.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::mem::ManuallyDrop;

use common::forks::fork_child;
use common::own_process::{block_on, in_own_process};
use common::{as_pid, sleeper};
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{ReaperClosed, ShimHandle, ShimReaper, Signal, SpawnOptions};

/// Runs `body` in a forked child, which exits with 0 if it returns true.
fn forked(body: impl FnOnce() -> bool) -> WaitStatus {
    let pid = fork_child(|| {
        let code = i32::from(!body());
        // SAFETY: ends the child without running any code of the parent.
        unsafe { libc::_exit(code) }
    });
    waitpid(as_pid(pid), None).unwrap()
}

fn is_success(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Exited(_, 0))
}

fn spawn_sleeper(options: SpawnOptions) -> (ShimReaper, ShimHandle) {
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    let handle = reaper.spawn_with(sleeper(), options).unwrap();
    (reaper, handle)
}

#[test]
fn a_copy_of_a_handle_kills_no_shim_when_it_is_dropped() {
    in_own_process(
        "a_copy_of_a_handle_kills_no_shim_when_it_is_dropped",
        || {
            let (reaper, handle) = spawn_sleeper(SpawnOptions::new().kill_on_drop(true));
            let mut handle = ManuallyDrop::new(handle);
            let status = forked(|| {
                // SAFETY: the copy of this process is dropped once.
                unsafe { ManuallyDrop::drop(&mut handle) };
                true
            });
            assert!(is_success(status));
            // A SIGKILL of the copy would come first.
            let _ = handle.send_signal(Signal::SIGTERM);
            assert_eq!(handle.wait_blocking().unwrap().signal(), Some(15));
            drop(ManuallyDrop::into_inner(handle));
            assert_eq!(reaper.stats().reaped_total, 1);
        },
    );
}

#[test]
fn a_copy_of_a_handle_does_not_wait() {
    in_own_process("a_copy_of_a_handle_does_not_wait", || {
        let (_reaper, handle) = spawn_sleeper(SpawnOptions::new());
        let status = forked(|| handle.wait_blocking() == Err(ReaperClosed));
        assert!(is_success(status));
        handle.start_kill().unwrap();
        assert_eq!(handle.wait_blocking().unwrap().signal(), Some(9));
    });
}

#[test]
fn a_copy_of_a_reaper_without_a_worker_starts_no_thread() {
    in_own_process(
        "a_copy_of_a_reaper_without_a_worker_starts_no_thread",
        || {
            // The worker is gone with its tokio runtime.
            let reaper = block_on(async { ShimReaper::start() });
            let status = forked(|| {
                drop(reaper.exits());
                std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
            });
            assert!(is_success(status));
        },
    );
}
