//! Handles get the true exit code although other code in the process reaps the children.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::zombie_processes,
    unsafe_code
)]

mod common;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::log_counter::LogCounter;
use common::own_process::{block_on, ignore_sigchld, in_own_process};
use common::{Fixture, eventually, exits_on_eof, is_gone, kernel_is_at_least};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use shim_reaper::{ReapedBy, ShimExit, ShimReaper, SpawnOptions};

const SHIMS: i32 = 200;

#[test]
fn foreign_waits_that_win_every_race_lose_no_exit_code() {
    in_own_process(
        "foreign_waits_that_win_every_race_lose_no_exit_code",
        || {
            let log = LogCounter::install();
            block_on(async {
                let (fixture, exits) = lose_every_race(true).await;
                fixture.expect(0, SHIMS as u64, 0).await;
                assert_eq!(log.warnings(), 1, "the reaper logs a foreign wait once");
                // Half of them are registered by pid, so their owner may have waited.
                let stats = fixture.reaper.stats();
                assert_eq!(stats.foreign_waits_total, SHIMS as u64 / 2);
                assert_eq!(stats.owner_reaped_total, SHIMS as u64 / 2);
                for (i, exit) in exits.iter().enumerate() {
                    assert_eq!(exit.code(), code_after_reaping(i), "shim {i}: {exit:?}");
                    assert_eq!(exit.reaped_by, other_wait(i), "shim {i}");
                }
            });
        },
    );
}

#[test]
fn without_pidfds_foreign_waits_count_as_vanished() {
    in_own_process("without_pidfds_foreign_waits_count_as_vanished", || {
        block_on(async {
            let (fixture, exits) = lose_every_race(false).await;
            fixture.expect(0, SHIMS as u64, 0).await;
            for (i, exit) in exits.iter().enumerate() {
                assert_eq!((exit.status, exit.reaped_by), (None, other_wait(i)));
            }
        });
    });
}

#[test]
fn ignoring_sigchld_loses_no_exit_code() {
    in_own_process("ignoring_sigchld_loses_no_exit_code", || {
        ignore_sigchld();
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder());
            let exits = end_all(&fixture, |_| {}).await;
            fixture.expect(0, SHIMS as u64, 0).await;
            for (i, exit) in exits.iter().enumerate() {
                assert_eq!(exit.code(), code_after_reaping(i), "shim {i}: {exit:?}");
            }
        });
    });
}

#[test]
fn without_pidfds_ignoring_sigchld_counts_as_vanished() {
    in_own_process("without_pidfds_ignoring_sigchld_counts_as_vanished", || {
        ignore_sigchld();
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder().pidfd(false));
            let exits = end_all(&fixture, |_| {}).await;
            fixture.expect(0, SHIMS as u64, 0).await;
            assert!(exits.iter().all(|exit| exit.status.is_none()));
        });
    });
}

/// Keeps the reaper from sweeping while a foreign wait reaps every child.
async fn lose_every_race(pidfd: bool) -> (Fixture, Vec<ShimExit>) {
    let reaper_runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let fixture = {
        let _entered = reaper_runtime.enter();
        Fixture::new(
            ShimReaper::builder()
                .pidfd(pidfd)
                .sweep_interval(Duration::from_millis(20)),
        )
    };
    let exits = end_all(&fixture, move |pids| {
        reap_all(pids);
        // The reaper runs from here on.
        std::thread::spawn(move || reaper_runtime.block_on(std::future::pending::<()>()));
    })
    .await;
    (fixture, exits)
}

/// Starts shims and registers half of them by pid and half as children. Lets them exit with distinct
/// codes, calls `after_exit` with their pids, and awaits their handles.
async fn end_all(fixture: &Fixture, after_exit: impl FnOnce(&[u32])) -> Vec<ShimExit> {
    let mut handles = Vec::new();
    let mut stdins = Vec::new();
    for i in 0..SHIMS {
        let mut child = exits_on_eof(i % 250).spawn().unwrap();
        stdins.push(child.stdin.take());
        handles.push(if i % 2 == 0 {
            fixture.reaper.register(child.id()).unwrap()
        } else {
            fixture.reaper.register_child(child).unwrap()
        });
    }
    drop(stdins);
    let pids: Vec<u32> = handles.iter().map(shim_reaper::ShimHandle::id).collect();
    after_exit(&pids);
    let mut exits = Vec::new();
    for handle in handles {
        exits.push(handle.await.unwrap());
    }
    for pid in pids {
        eventually("the shim is gone", || is_gone(pid)).await;
    }
    exits
}

fn reap_all(pids: &[u32]) {
    for _ in pids {
        waitpid(Pid::from_raw(-1), None).unwrap();
    }
}

/// A thread that waits for any child races the reaper. Both win sometimes.
#[test]
fn racing_foreign_waits_lose_no_exit_code() {
    in_own_process("racing_foreign_waits_lose_no_exit_code", || {
        block_on(async {
            let stop = Arc::new(AtomicBool::new(false));
            let waiter = std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || {
                    let mut reaped_by_waiter = 0;
                    while !stop.load(Ordering::Relaxed) {
                        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                            Ok(nix::sys::wait::WaitStatus::StillAlive) | Err(Errno::ECHILD) => {}
                            Ok(_) => reaped_by_waiter += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    reaped_by_waiter
                }
            });
            let fixture = Fixture::new(ShimReaper::builder().owner_grace(Duration::ZERO));
            let exits = end_all(&fixture, |_| {}).await;
            stop.store(true, Ordering::Relaxed);
            let reaped_by_waiter: u64 = waiter.join().unwrap();
            fixture
                .expect(SHIMS as u64 - reaped_by_waiter, reaped_by_waiter, 0)
                .await;
            for (i, exit) in exits.iter().enumerate() {
                if exit.reaped_by == ReapedBy::Reaper {
                    assert_eq!(exit.code(), Some(i as i32 % 250));
                } else {
                    assert_eq!(exit.code(), code_after_reaping(i), "shim {i}: {exit:?}");
                }
            }
        });
    });
}

/// The shims exit before the reaper could open a pidfd by pid.
#[test]
fn short_lived_shims_with_sigchld_ignored_keep_their_exit_codes() {
    in_own_process(
        "short_lived_shims_with_sigchld_ignored_keep_their_exit_codes",
        || {
            ignore_sigchld();
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder());
                for i in 0..SHIMS {
                    let exit = spawn_short_lived(&fixture, i).await;
                    assert_eq!(exit.code(), code_after_reaping(i as usize));
                }
                fixture.expect(0, SHIMS as u64, 0).await;
            });
        },
    );
}

/// Each shim is the first one of its reaper, which has not seen the foreign waits yet.
#[test]
fn with_early_pidfds_the_first_foreign_wait_loses_no_exit_code() {
    in_own_process(
        "with_early_pidfds_the_first_foreign_wait_loses_no_exit_code",
        || {
            wait_for_any_child();
            block_on(async {
                for i in 0..SHIMS {
                    let fixture = Fixture::new(ShimReaper::builder().early_pidfd(true));
                    check_short_lived(&fixture, i).await;
                    fixture.reaper.shutdown().await;
                }
            });
        },
    );
}

#[test]
fn without_early_pidfds_only_the_first_foreign_wait_can_lose_an_exit_code() {
    in_own_process(
        "without_early_pidfds_only_the_first_foreign_wait_can_lose_an_exit_code",
        || {
            wait_for_any_child();
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder().early_pidfd(false));
                // Until the reaper notices the foreign wait.
                while spawn_short_lived(&fixture, 0).await.reaped_by == ReapedBy::Reaper {}
                for i in 0..SHIMS {
                    check_short_lived(&fixture, i).await;
                }
            });
        },
    );
}

/// std panics where it waits for a child that it could not start and that is reaped already. The
/// panic hook shows whether that happened.
#[test]
fn failed_spawns_with_sigchld_ignored_return_the_error_of_std_without_a_panic() {
    in_own_process(
        "failed_spawns_with_sigchld_ignored_return_the_error_of_std_without_a_panic",
        || {
            let missing_directory = || {
                let mut command = Command::new("true");
                command.current_dir("/nonexistent");
                command
            };
            let with_fork = || {
                let mut command = Command::new("nonexistent-program");
                // SAFETY: does nothing.
                unsafe { command.pre_exec(|| Ok(())) };
                command
            };
            let commands: [fn() -> Command; 5] = [
                || Command::new("/nonexistent/shim"),
                || Command::new("nonexistent-program"),
                || Command::new("/dev/null"),
                missing_directory,
                with_fork,
            ];
            let expected = commands.map(|command| command().spawn().unwrap_err());
            ignore_sigchld();
            check_failed_spawns(&commands, &expected);
        },
    );
}

#[test]
fn failure_to_join_a_group_with_sigchld_ignored_returns_the_error_of_std_without_a_panic() {
    in_own_process(
        "failure_to_join_a_group_with_sigchld_ignored_returns_the_error_of_std_without_a_panic",
        || {
            // A group that does not exist, and a number that no group has.
            let expected = [i32::MAX, -1].map(|pgroup| {
                let error = Command::new("true").process_group(pgroup).spawn();
                (pgroup, error.unwrap_err())
            });
            ignore_sigchld();
            exit_on_panic();
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder());
                for (pgroup, expected) in expected {
                    let options = SpawnOptions::new().process_group(pgroup);
                    let spawned = fixture.reaper.spawn_with(Command::new("true"), options);
                    let errno = spawned.unwrap_err().raw_os_error();
                    assert_eq!(errno, expected.raw_os_error());
                }
                fixture.expect(0, 0, 0).await;
            });
        },
    );
}

#[test]
fn failed_spawns_beside_foreign_waits_return_the_error_of_std_without_a_panic() {
    in_own_process(
        "failed_spawns_beside_foreign_waits_return_the_error_of_std_without_a_panic",
        || {
            let commands: [fn() -> Command; SHIMS as usize] =
                [|| Command::new("/nonexistent/shim"); SHIMS as usize];
            let expected = commands.map(|_| io::ErrorKind::NotFound.into());
            wait_for_any_child();
            check_failed_spawns(&commands, &expected);
        },
    );
}

fn exit_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(70);
    }));
}

fn check_failed_spawns(commands: &[fn() -> Command], expected: &[io::Error]) {
    exit_on_panic();
    block_on(async {
        let fixture = Fixture::new(ShimReaper::builder());
        for (command, expected) in commands.iter().zip(expected) {
            let error = fixture.reaper.spawn(command()).unwrap_err();
            assert_eq!(error.kind(), expected.kind(), "{error}");
        }
        fixture.expect(0, 0, 0).await;
    });
    assert_eq!(
        waitpid(None, Some(WaitPidFlag::WNOHANG)),
        Err(Errno::ECHILD)
    );
}

fn wait_for_any_child() {
    std::thread::spawn(|| {
        loop {
            let _ = waitpid(Pid::from_raw(-1), None);
        }
    });
}

async fn check_short_lived(fixture: &Fixture, i: i32) {
    let exit = spawn_short_lived(fixture, i).await;
    if exit.reaped_by == ReapedBy::ForeignWait {
        assert_eq!(exit.code(), code_after_reaping(i as usize), "shim {i}");
    } else {
        assert_eq!(exit.code(), Some(i % 250));
    }
}

async fn spawn_short_lived(fixture: &Fixture, i: i32) -> ShimExit {
    let shim = common::exits_with(i % 250);
    fixture.reaper.spawn(shim).unwrap().await.unwrap()
}

/// Returns whose wait has reaped shim `i` of [`end_all`], if the reaper has not.
fn other_wait(i: usize) -> ReapedBy {
    if i % 2 == 0 {
        ReapedBy::Owner
    } else {
        ReapedBy::ForeignWait
    }
}

/// Returns the exit code of shim `i` on kernels that keep it for the pidfds of reaped processes.
fn code_after_reaping(i: usize) -> Option<i32> {
    kernel_is_at_least(6, 15).then_some(i as i32 % 250)
}
