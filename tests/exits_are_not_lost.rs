//! The true exit code reaches the handle although somebody else collects the child.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::own_process::{block_on, in_own_process};
use common::{Fixture, eventually, exits_on_eof, is_gone, kernel_is_at_least};
use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use shim_reaper::{CollectedBy, ShimExit, ShimReaper};

const SHIMS: i32 = 200;

#[test]
fn a_thief_that_wins_every_race_takes_no_code_from_the_handles() {
    in_own_process(
        "a_thief_that_wins_every_race_takes_no_code_from_the_handles",
        || {
            block_on(async {
                let (fixture, exits) = lose_every_race_to_a_thief(true).await;
                fixture.expect(0, SHIMS as u64, 0).await;
                for (i, exit) in exits.iter().enumerate() {
                    assert_eq!(exit.code(), known_after_collection(i), "shim {i}: {exit:?}");
                    assert_eq!(exit.collected_by, CollectedBy::Owner);
                }
            });
        },
    );
}

#[test]
fn without_pidfds_what_a_thief_took_is_counted_as_vanished() {
    in_own_process(
        "without_pidfds_what_a_thief_took_is_counted_as_vanished",
        || {
            block_on(async {
                let (fixture, exits) = lose_every_race_to_a_thief(false).await;
                fixture.expect(0, SHIMS as u64, 0).await;
                for exit in exits {
                    assert_eq!((exit.status, exit.collected_by), (None, CollectedBy::Owner));
                }
            });
        },
    );
}

#[test]
fn ignoring_sigchld_loses_no_code() {
    in_own_process("ignoring_sigchld_loses_no_code", || {
        ignore_sigchld();
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder());
            let exits = end_all(&fixture, |_| {}).await;
            fixture.expect(0, SHIMS as u64, 0).await;
            for (i, exit) in exits.iter().enumerate() {
                assert_eq!(exit.code(), known_after_collection(i), "shim {i}: {exit:?}");
            }
        });
    });
}

#[test]
fn ignoring_sigchld_without_pidfds_is_counted_as_vanished() {
    in_own_process(
        "ignoring_sigchld_without_pidfds_is_counted_as_vanished",
        || {
            ignore_sigchld();
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder().pidfd(false));
                let exits = end_all(&fixture, |_| {}).await;
                fixture.expect(0, SHIMS as u64, 0).await;
                assert!(exits.iter().all(|exit| exit.status.is_none()));
            });
        },
    );
}

/// A runtime's worker is kept from sweeping while the thief collects every single child.
async fn lose_every_race_to_a_thief(pidfd: bool) -> (Fixture, Vec<ShimExit>) {
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
        steal_all(pids);
        // Only from now on is the reaper driven.
        std::thread::spawn(move || reaper_runtime.block_on(std::future::pending::<()>()));
    })
    .await;
    (fixture, exits)
}

/// Starts shims, registers half of them by pid and half as children, lets them exit with distinct
/// codes, calls `meanwhile`, and awaits their handles.
async fn end_all(fixture: &Fixture, meanwhile: impl FnOnce(&[u32])) -> Vec<ShimExit> {
    let mut handles = Vec::new();
    let mut lifelines = Vec::new();
    for i in 0..SHIMS {
        let mut child = exits_on_eof(i % 250).spawn().unwrap();
        lifelines.push(child.stdin.take());
        handles.push(if i % 2 == 0 {
            fixture.reaper.register(child.id()).await.unwrap()
        } else {
            fixture.reaper.register_child(child).unwrap()
        });
    }
    drop(lifelines);
    let pids: Vec<u32> = handles.iter().map(shim_reaper::ShimHandle::pid).collect();
    meanwhile(&pids);
    let mut exits = Vec::new();
    for handle in handles {
        exits.push(handle.await.unwrap());
    }
    for pid in pids {
        eventually("gone", || is_gone(pid)).await;
    }
    exits
}

fn steal_all(pids: &[u32]) {
    let mut stolen = 0;
    while stolen < pids.len() {
        waitpid(Pid::from_raw(-1), None).unwrap();
        stolen += 1;
    }
}

/// A thief that never stops, racing a reaper that is driven: whoever wins, the code is told.
#[test]
fn racing_a_thief_loses_no_code() {
    in_own_process("racing_a_thief_loses_no_code", || {
        block_on(async {
            let stop = Arc::new(AtomicBool::new(false));
            let thief = std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || {
                    let mut stolen = 0;
                    while !stop.load(Ordering::Relaxed) {
                        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                            Ok(nix::sys::wait::WaitStatus::StillAlive) | Err(Errno::ECHILD) => {}
                            Ok(_) => stolen += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    stolen
                }
            });
            let fixture = Fixture::new(ShimReaper::builder().owner_grace(Duration::ZERO));
            let exits = end_all(&fixture, |_| {}).await;
            stop.store(true, Ordering::Relaxed);
            let stolen: u64 = thief.join().unwrap();
            fixture.expect(SHIMS as u64 - stolen, stolen, 0).await;
            for (i, exit) in exits.iter().enumerate() {
                if exit.collected_by == CollectedBy::Reaper {
                    assert_eq!(exit.code(), Some(i as i32 % 250));
                } else {
                    assert_eq!(exit.code(), known_after_collection(i), "shim {i}: {exit:?}");
                }
            }
        });
    });
}

/// They end before anybody could open a pidfd by number.
#[test]
fn spawning_short_lived_shims_with_sigchld_ignored_loses_no_code() {
    in_own_process(
        "spawning_short_lived_shims_with_sigchld_ignored_loses_no_code",
        || {
            ignore_sigchld();
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder());
                for i in 0..SHIMS {
                    let exit = spawn_short_lived(&fixture, i).await;
                    assert_eq!(exit.code(), known_after_collection(i as usize));
                }
                fixture.expect(0, SHIMS as u64, 0).await;
                let missing = std::process::Command::new("/nonexistent/shim");
                fixture.reaper.spawn(missing).await.unwrap_err();
            });
        },
    );
}

#[test]
fn spawning_short_lived_shims_beside_a_known_thief_loses_no_code() {
    in_own_process(
        "spawning_short_lived_shims_beside_a_known_thief_loses_no_code",
        || {
            block_on(async {
                std::thread::spawn(|| {
                    loop {
                        let _ = waitpid(Pid::from_raw(-1), None);
                    }
                });
                let fixture = Fixture::new(ShimReaper::builder());
                // Until the reaper has noticed.
                while spawn_short_lived(&fixture, 0).await.collected_by == CollectedBy::Reaper {}
                for i in 0..SHIMS {
                    let exit = spawn_short_lived(&fixture, i).await;
                    if exit.collected_by == CollectedBy::Owner {
                        assert_eq!(exit.code(), known_after_collection(i as usize));
                    } else {
                        assert_eq!(exit.code(), Some(i % 250));
                    }
                }
            });
        },
    );
}

async fn spawn_short_lived(fixture: &Fixture, i: i32) -> ShimExit {
    let shim = common::exits_with(i % 250);
    fixture.reaper.spawn(shim).await.unwrap().await.unwrap()
}

fn ignore_sigchld() {
    // SAFETY: SIG_IGN is no handler, so nothing can run in it.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// The exit code of shim `i`, on kernels that keep it for pidfds of collected processes.
fn known_after_collection(i: usize) -> Option<i32> {
    kernel_is_at_least(6, 15).then_some(i as i32 % 250)
}
