//! A panic in the sweep, or the loss of its runtime, stops nothing for long.

mod common;

use std::time::{Duration, Instant};

use common::logged::Logged;
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, Fixture, eventually, exits_on_eof, exits_with, is_gone, sleeper};
use shim_reaper::{ReaperBuilder, ShimReaper, SpawnOptions};

in_both_modes!(
    registering_brings_the_worker_back_on_the_callers_runtime,
    spawning_brings_the_worker_back_on_the_callers_runtime,
    awaiting_a_handle_brings_the_worker_back_on_the_callers_runtime,
);

/// Fail points belong to the whole process, and so does the count of errors logged.
#[test]
fn a_panic_anywhere_in_the_sweep_replaces_the_worker() {
    in_own_process("a_panic_anywhere_in_the_sweep_replaces_the_worker", || {
        let logged = Logged::everywhere();
        let mut deaths = 0;
        for point in ["work", "collect", "pass", "examine"] {
            for pidfd in [true, false] {
                block_on(survives_a_panic_at(point, pidfd));
                deaths += 1;
                assert_eq!(logged.errors(), deaths, "one error a death, at {point}");
            }
        }
    });
}

async fn survives_a_panic_at(point: &str, pidfd: bool) {
    let interval = Duration::from_millis(20);
    let fixture = Fixture::new(ShimReaper::builder().pidfd(pidfd).sweep_interval(interval));
    let mut handles = Vec::new();
    let mut lifelines = Vec::new();
    for _ in 0..20 {
        let mut child = exits_on_eof(5).spawn().unwrap();
        lifelines.push(child.stdin.take());
        handles.push(fixture.reaper.register_child(child).unwrap());
    }
    fixture.sweeps(1).await;

    fail::cfg(format!("shim_reaper::{point}"), "1*panic(injected)").unwrap();
    drop(lifelines);
    // Nobody registers anything: the worker comes back by itself.
    eventually("replaced", || fixture.reaper.stats().respawns_total == 1).await;
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

/// Nothing but its place in the queue would bring it back: the next sweep is an hour away.
#[test]
fn the_shim_whose_examination_panicked_is_examined_again() {
    in_own_process(
        "the_shim_whose_examination_panicked_is_examined_again",
        || {
            block_on(async {
                let interval = Duration::from_secs(3_600);
                let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
                eventually("swept", || fixture.reaper.stats().sweeps_completed == 1).await;
                // More than a few sweeps look at unasked.
                let options = SpawnOptions::new().kill_on_drop(true);
                let mut elders = Vec::new();
                for _ in 0..50 {
                    elders.push(fixture.reaper.spawn_with(sleeper(), options).await.unwrap());
                }
                fail::cfg("shim_reaper::examine", "100*off->1*panic(injected)").unwrap();
                let mut shims = Vec::new();
                for _ in 0..200 {
                    shims.push(fixture.reaper.spawn(exits_with(5)).await.unwrap());
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
fn repeated_panics_back_off_and_heal() {
    in_own_process("repeated_panics_back_off_and_heal", || {
        block_on(async {
            let interval = Duration::from_millis(50);
            let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
            let handle = fixture.reaper.spawn(exits_with(6)).await.unwrap();
            fail::cfg("shim_reaper::collect", "panic(injected)").unwrap();
            let start = Instant::now();
            eventually("many panics", || fixture.reaper.stats().respawns_total >= 5).await;
            // At once, then after 1, 2 and 4 intervals.
            assert!(start.elapsed() >= interval * 7, "they spin");
            fail::remove("shim_reaper::collect");
            assert_eq!(handle.await.unwrap().code(), Some(6));
            fixture.sweeps(2).await;
            let healed = fixture.reaper.stats();
            fixture.sweeps(5).await;
            assert_eq!(fixture.reaper.stats().respawns_total, healed.respawns_total);
        });
    });
}

#[test]
fn a_shutdown_between_panics_is_prompt_and_drains() {
    in_own_process("a_shutdown_between_panics_is_prompt_and_drains", || {
        block_on(async {
            let interval = Duration::from_secs(3_600);
            let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
            fail::cfg("shim_reaper::collect", "panic(injected)").unwrap();
            let handle = fixture.reaper.spawn(exits_with(6)).await.unwrap();
            eventually("panicked", || fixture.reaper.stats().respawns_total >= 1).await;
            eventually("dead", || common::is_zombie(handle.pid())).await;
            assert_eq!(fixture.reaper.shutdown().await.drained, 1);
            assert_eq!(handle.await.unwrap().code(), Some(6));
        });
    });
}

/// A reaper whose runtime is gone, with a shim that died since.
async fn stranded(builder: ReaperBuilder) -> (Fixture, shim_reaper::ShimHandle) {
    let (fixture, handle) = std::thread::spawn(|| {
        block_on(async {
            let fixture = Fixture::new(builder);
            let handle = fixture.reaper.spawn(sleeper()).await.unwrap();
            assert!(fixture.reaper.worker_alive());
            (fixture, handle)
        })
    })
    .join()
    .unwrap();
    assert!(!fixture.reaper.worker_alive());
    assert!(!fixture.reaper.stats().worker_alive);
    handle.kill().unwrap();
    (fixture, handle)
}

async fn registering_brings_the_worker_back_on_the_callers_runtime(builder: ReaperBuilder) {
    let (fixture, handle) = stranded(builder).await;
    let child = exits_with(3).spawn().unwrap();
    drop(fixture.reaper.register(child.id()).await.unwrap());
    assert!(fixture.reaper.worker_alive());
    eventually("collected", || is_gone(handle.pid())).await;
    assert_eq!(handle.await.unwrap().signal(), Some(9));
    fixture.expect(2, 0, 0).await;
    assert_eq!(fixture.reaper.stats().respawns_total, 1);
}

async fn spawning_brings_the_worker_back_on_the_callers_runtime(builder: ReaperBuilder) {
    let (fixture, handle) = stranded(builder).await;
    let spawned = fixture.reaper.spawn(exits_with(3)).await.unwrap();
    assert!(fixture.reaper.worker_alive());
    assert_eq!(spawned.await.unwrap().code(), Some(3));
    assert_eq!(handle.await.unwrap().signal(), Some(9));
    fixture.expect(2, 0, 0).await;
}

async fn awaiting_a_handle_brings_the_worker_back_on_the_callers_runtime(builder: ReaperBuilder) {
    let (fixture, handle) = stranded(builder).await;
    assert_eq!(handle.await.unwrap().signal(), Some(9));
    assert!(fixture.reaper.worker_alive());
    fixture.expect(1, 0, 0).await;
}
