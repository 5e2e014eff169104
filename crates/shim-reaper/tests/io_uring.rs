//! With io_uring, the kernel reaps the shims that no other code may wait for, and no others.
#![allow(clippy::unwrap_used, clippy::zombie_processes, unsafe_code)]

mod common;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use common::forks::fork_child;
use common::io_uring::{rings, spawn_sleepers, start};
use common::own_process::in_own_process;
use common::{as_pid, eventually_blocking, exits_with, is_gone, kernel_is_at_least, kill, sleeper};
use futures::executor::block_on;
use nix::libc;
use nix::sys::signal::Signal::{SIGABRT, SIGKILL};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use shim_reaper::{ReapedBy, ShimHandle, ShimReaper, SpawnOptions};

#[test]
fn kernel_reaps_shims_and_reports_their_statuses() {
    let Some(reaper) = start(ShimReaper::builder()) else {
        return;
    };
    let shims = spawn_sleepers(&reaper, 3);
    let mut with_code = std::process::Command::new("sh");
    with_code.args(["-c", "read line; exit 12"]);
    with_code.stdin(std::process::Stdio::piped());
    let with_code = reaper.spawn(with_code).unwrap();
    drop(spawn_sleepers(&reaper, 0));
    kill(shims[0].id(), SIGKILL);
    kill(shims[1].id(), SIGABRT);
    drop(with_code.take_stdin());
    let exits = [&shims[0], &shims[1], &with_code].map(|shim| block_on(shim.wait()).unwrap());
    assert_eq!(exits[0].signal(), Some(9));
    assert_eq!(exits[1].signal(), Some(6));
    assert_eq!(exits[2].code(), Some(12));
    for exit in exits {
        assert_eq!(exit.reaped_by, ReapedBy::Reaper);
        assert_eq!(exit.rusage, None, "io_uring does not report it");
    }
    assert!(shims[2].is_running());
    block_on(shims[2].kill()).unwrap();
    eventually_blocking("all are counted", || reaper.stats().registered == 0);
    assert_eq!(reaper.stats().vanished_total, 0);
}

#[test]
fn burst_of_exits_is_reaped_without_a_sweep_and_leaves_no_descriptor() {
    in_own_process(
        "burst_of_exits_is_reaped_without_a_sweep_and_leaves_no_descriptor",
        || {
            let Some(reaper) = start(ShimReaper::builder()) else {
                return;
            };
            let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            drop(spawn_sleepers(&reaper, 20));
            let shims = spawn_sleepers(&reaper, 400);
            shims.iter().for_each(|shim| kill(shim.id(), SIGKILL));
            for shim in &shims {
                let exit = block_on(shim.wait()).unwrap();
                assert_eq!((exit.signal(), exit.rusage), (Some(9), None));
            }
            // The pidfds of a few finished shims stay open for a while.
            eventually_blocking("the pidfds are closed", || descriptors() < 20 + 16 + 16);
            reaper
                .registered()
                .into_iter()
                .for_each(|pid| kill(pid, SIGKILL));
        },
    );
}

#[test]
fn calls_that_reap_beside_the_kernel_agree_with_it() {
    let Some(reaper) = start(ShimReaper::builder()) else {
        return;
    };
    for _ in 0..10 {
        let shims = spawn_sleepers(&reaper, 20);
        thread::scope(|scope| {
            for shim in &shims {
                scope.spawn(|| assert_eq!(shim.wait_blocking().unwrap().signal(), Some(9)));
            }
            shims.iter().for_each(|shim| kill(shim.id(), SIGKILL));
        });
    }
    assert_eq!(reaper.stats().foreign_waits_total, 0);
    assert_eq!(reaper.stats().reaped_total, 10 * 22);
}

#[test]
fn foreign_wait_that_comes_first_hides_no_status() {
    in_own_process("foreign_wait_that_comes_first_hides_no_status", || {
        let Some(reaper) = start(ShimReaper::builder()) else {
            return;
        };
        let shims = spawn_sleepers(&reaper, 200);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let _ = waitpid(None, Some(WaitPidFlag::WNOHANG));
                }
            });
            shims.iter().for_each(|shim| kill(shim.id(), SIGKILL));
            for shim in &shims {
                let exit = block_on(shim.wait()).unwrap();
                if exit.reaped_by == ReapedBy::Reaper || kernel_is_at_least(6, 15) {
                    assert_eq!(exit.signal(), Some(9));
                }
            }
            stop.store(true, Relaxed);
        });
        assert_eq!(reaper.stats().registered, 0);
    });
}

#[test]
fn owner_of_a_registered_child_comes_first() {
    let builder = ShimReaper::builder().owner_grace(common::DEADLINE);
    let Some(reaper) = start(builder) else { return };
    let mut child = sleeper().spawn().unwrap();
    let shim = reaper.register(child.id()).unwrap();
    drop(spawn_sleepers(&reaper, 0));
    child.kill().unwrap();
    let exit = block_on(shim).unwrap();
    assert_eq!(exit.reaped_by, ReapedBy::Owner);
    assert_eq!(child.wait().unwrap().code(), None);
}

/// The number of its group is in use until the reaper reaps it.
#[test]
fn kernel_does_not_reap_the_leader_of_a_process_group() {
    let Some(reaper) = start(ShimReaper::builder()) else {
        return;
    };
    let options = SpawnOptions::new().process_group(0);
    let leader = reaper.spawn_with(sleeper(), options).unwrap();
    drop(spawn_sleepers(&reaper, 0));
    assert!(block_on(leader.kill()).unwrap().rusage.is_some());
}

#[test]
fn kernel_reaps_nothing_after_a_shutdown() {
    in_own_process("kernel_reaps_nothing_after_a_shutdown", || {
        for _ in 0..20 {
            let Some(reaper) = start(ShimReaper::builder()) else {
                return;
            };
            let shims = spawn_sleepers(&reaper, 20);
            let report = reaper.shutdown_sync();
            assert_eq!(report.still_running.len(), shims.len());
            assert_all_waitable(&shims);
            drop(reaper);
            eventually_blocking("the ring is closed", || rings() == 0);
        }
    });
}

/// A waker may run any code of the executor.
#[test]
fn shutdown_does_not_wait_for_a_thread_that_a_waker_blocks() {
    in_own_process(
        "shutdown_does_not_wait_for_a_thread_that_a_waker_blocks",
        || {
            let Some(reaper) = start(ShimReaper::builder()) else {
                return;
            };
            let shims = spawn_sleepers(&reaper, 20);
            let mut blocking = reaper.spawn(sleeper()).unwrap();
            let (release, is_released) = mpsc::channel::<()>();
            let (blocked, is_blocked) = mpsc::channel();
            let waker = Waker::from(Arc::new(BlockingWaker(Mutex::new(is_released), blocked)));
            let poll = Pin::new(&mut blocking).poll(&mut Context::from_waker(&waker));
            assert!(poll.is_pending());
            kill(blocking.id(), SIGKILL);
            is_blocked.recv().unwrap();
            // An exit during the shutdown, which the thread cannot notice.
            kill(shims[0].id(), SIGKILL);
            eventually_blocking("the shim exits", || common::is_zombie(shims[0].id()));
            let report = reaper.shutdown_sync();
            assert_eq!(block_on(shims[0].wait()).unwrap().signal(), Some(9));
            assert_eq!(report.still_running.len(), shims.len() - 1);
            let running: Vec<u32> = shims[1..].iter().map(ShimHandle::id).collect();
            // Closes the pidfds.
            drop((shims, blocking));
            running.iter().for_each(|pid| kill(*pid, SIGKILL));
            release.send(()).unwrap();
            eventually_blocking("the ring is closed", || rings() == 0);
            for pid in running {
                let status = waitpid(as_pid(pid), None).unwrap();
                assert!(matches!(status, WaitStatus::Signaled(_, SIGKILL, _)));
            }
        },
    );
}

struct BlockingWaker(Mutex<mpsc::Receiver<()>>, mpsc::Sender<()>);

impl Wake for BlockingWaker {
    fn wake(self: Arc<Self>) {
        self.1.send(()).unwrap();
        let _ = self.0.lock().unwrap().recv();
    }
}

/// Each exit is either in the handle, or left to other waits.
#[test]
fn exit_during_a_shutdown_is_not_lost() {
    in_own_process("exit_during_a_shutdown_is_not_lost", || {
        for round in 0..30 {
            let Some(reaper) = start(ShimReaper::builder()) else {
                return;
            };
            let shims = spawn_sleepers(&reaper, 20);
            let report = thread::scope(|scope| {
                scope.spawn(|| shims.iter().for_each(|shim| kill(shim.id(), SIGKILL)));
                thread::sleep(Duration::from_micros(round * 20));
                reaper.shutdown_sync()
            });
            for shim in &shims {
                match block_on(shim.wait()) {
                    Ok(exit) => assert_eq!(exit.signal(), Some(9)),
                    Err(_) => {
                        assert!(report.still_running.contains(&shim.id()));
                        let status = waitpid(as_pid(shim.id()), None).unwrap();
                        assert!(matches!(status, WaitStatus::Signaled(_, SIGKILL, _)));
                    }
                }
                assert!(is_gone(shim.id()));
            }
            assert_eq!(reaper.stats().foreign_waits_total, 0);
        }
    });
}

#[test]
fn forked_copy_of_a_reaper_disturbs_nothing() {
    in_own_process("forked_copy_of_a_reaper_disturbs_nothing", || {
        let Some(reaper) = start(ShimReaper::builder()) else {
            return;
        };
        let shims = spawn_sleepers(&reaper, 3);
        let copy = fork_child(|| {
            let report = reaper.shutdown_sync();
            let code = i32::from(!report.still_running.is_empty());
            // SAFETY: ends the child without running any code of the parent.
            unsafe { libc::_exit(code) }
        });
        let mut status = WaitStatus::StillAlive;
        eventually_blocking("the copy shuts down", || {
            status = waitpid(as_pid(copy), Some(WaitPidFlag::WNOHANG)).unwrap();
            status != WaitStatus::StillAlive
        });
        assert!(matches!(status, WaitStatus::Exited(..)), "{status:?}");
        for shim in &shims {
            kill(shim.id(), SIGKILL);
            let exit = block_on(shim.wait()).unwrap();
            assert_eq!((exit.signal(), exit.rusage), (Some(9), None));
        }
    });
}

#[test]
fn ring_is_closed_when_the_last_shim_of_a_dropped_reaper_has_ended() {
    in_own_process(
        "ring_is_closed_when_the_last_shim_of_a_dropped_reaper_has_ended",
        || {
            // A sweep notices that the reaper is dropped.
            let reaper = ShimReaper::builder()
                .io_uring(true)
                .sweep_interval(Duration::from_millis(20))
                .start_dedicated()
                .unwrap();
            let shim = spawn_sleepers(&reaper, 1).pop().unwrap();
            let pid = shim.id();
            drop((reaper, shim));
            kill(pid, SIGKILL);
            eventually_blocking("the shim is reaped", || is_gone(pid));
            eventually_blocking("the ring is closed", || rings() == 0);
        },
    );
}

/// Without the option, the reaper creates no ring.
#[test]
fn io_uring_is_off_by_default() {
    in_own_process("io_uring_is_off_by_default", || {
        let reaper = ShimReaper::builder().start_dedicated().unwrap();
        let exit = block_on(reaper.spawn(exits_with(0)).unwrap()).unwrap();
        assert!(exit.rusage.is_some());
        assert_eq!(rings(), 0);
    });
}

fn assert_all_waitable(shims: &[ShimHandle]) {
    shims.iter().for_each(|shim| kill(shim.id(), SIGKILL));
    for shim in shims {
        let status = waitpid(as_pid(shim.id()), None).unwrap();
        assert!(matches!(status, WaitStatus::Signaled(_, SIGKILL, _)));
    }
}
