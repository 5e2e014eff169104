//! The reaper replaces a worker that panicked, and loses no exit.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::time::{Duration, Instant};

use common::log_counter::LogCounter;
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, Fixture, eventually, exits_on_eof, exits_with, sleeper};
use shim_reaper::{ShimReaper, SpawnOptions};

/// Fail points and the log counter are process-wide.
#[test]
fn a_panic_at_any_fail_point_replaces_the_worker() {
    in_own_process("a_panic_at_any_fail_point_replaces_the_worker", || {
        let log = LogCounter::install();
        let mut panics = 0;
        for point in ["work", "reap", "pass", "examine"] {
            for pidfd in [true, false] {
                block_on(survives_a_panic_at(point, pidfd));
                panics += 1;
                assert_eq!(log.errors(), panics, "one error per panic, at {point}");
            }
        }
    });
}

async fn survives_a_panic_at(point: &str, pidfd: bool) {
    let interval = Duration::from_millis(20);
    let fixture = Fixture::new(ShimReaper::builder().pidfd(pidfd).sweep_interval(interval));
    let mut handles = Vec::new();
    let mut stdins = Vec::new();
    for _ in 0..20 {
        let mut child = exits_on_eof(5).spawn().unwrap();
        stdins.push(child.stdin.take());
        handles.push(fixture.reaper.register_child(child).unwrap());
    }
    fixture.sweeps(1).await;

    fail::cfg(format!("shim_reaper::{point}"), "1*panic(injected)").unwrap();
    drop(stdins);
    // No call to the reaper is needed to replace the worker.
    eventually("the worker is replaced", || {
        fixture.reaper.stats().respawns_total == 1
    })
    .await;
    for handle in handles {
        assert_eq!(handle.await.unwrap().code(), Some(5));
    }
    fixture.sweeps(3).await;
    fixture.expect(20, 0, 0).await;
    assert!(fixture.reaper.worker_alive());
    assert_eq!(fixture.reaper.stats().respawns_total, 1);
    fail::remove(format!("shim_reaper::{point}"));
    fixture.reaper.shutdown().await;
}

/// The next sweep is an hour away, so only the queue can bring the shim back.
#[test]
fn a_shim_whose_examination_panicked_is_examined_again() {
    in_own_process(
        "a_shim_whose_examination_panicked_is_examined_again",
        || {
            block_on(async {
                let interval = Duration::from_secs(3_600);
                let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
                eventually("the first sweep completes", || {
                    fixture.reaper.stats().sweeps_completed == 1
                })
                .await;
                // More shims than one sweep spot-checks.
                let options = SpawnOptions::new().kill_on_drop(true);
                let mut older_shims = Vec::new();
                for _ in 0..50 {
                    older_shims.push(fixture.reaper.spawn_with(sleeper(), options).unwrap());
                }
                fail::cfg("shim_reaper::examine", "100*off->1*panic(injected)").unwrap();
                let mut shims = Vec::new();
                for _ in 0..200 {
                    shims.push(fixture.reaper.spawn(exits_with(5)).unwrap());
                }
                let all = futures::future::join_all(shims);
                let exits = tokio::time::timeout(DEADLINE, all).await.unwrap();
                assert!(exits.iter().all(|exit| exit.unwrap().code() == Some(5)));
                assert_eq!(fixture.reaper.stats().respawns_total, 1);
            });
        },
    );
}

#[test]
fn repeated_panics_back_off_until_they_stop() {
    in_own_process("repeated_panics_back_off_until_they_stop", || {
        block_on(async {
            let interval = Duration::from_millis(50);
            let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
            let handle = fixture.reaper.spawn(exits_with(6)).unwrap();
            fail::cfg("shim_reaper::reap", "panic(injected)").unwrap();
            let start = Instant::now();
            eventually("six panics", || fixture.reaper.stats().respawns_total >= 6).await;
            // The backoff is zero, then 1, 2, 4 and 8 intervals.
            assert!(
                start.elapsed() >= interval * 15,
                "the replacements do not back off"
            );
            fail::remove("shim_reaper::reap");
            assert_eq!(handle.await.unwrap().code(), Some(6));
            fixture.sweeps(2).await;
            let stats = fixture.reaper.stats();
            fixture.sweeps(5).await;
            assert_eq!(fixture.reaper.stats().respawns_total, stats.respawns_total);
        });
    });
}

#[test]
fn a_shutdown_during_backoff_drains_at_once() {
    in_own_process("a_shutdown_during_backoff_drains_at_once", || {
        block_on(async {
            let interval = Duration::from_secs(3_600);
            let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
            fail::cfg("shim_reaper::reap", "panic(injected)").unwrap();
            let handle = fixture.reaper.spawn(exits_with(6)).unwrap();
            eventually("the worker panics", || {
                fixture.reaper.stats().respawns_total >= 1
            })
            .await;
            eventually("the shim exits", || common::is_zombie(handle.id())).await;
            assert_eq!(fixture.reaper.shutdown().await.drained, 1);
            assert_eq!(handle.await.unwrap().code(), Some(6));
        });
    });
}
