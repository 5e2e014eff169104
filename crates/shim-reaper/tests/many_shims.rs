//! Bursts of exits, and thousands of live shims.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::time::{Duration, Instant};

use common::forks::IdleChildren;
use common::{Fixture, allow_descriptors, eventually, is_gone, state_of};
use shim_reaper::{ReaperBuilder, ShimReaper};

in_both_modes!(
    a_burst_of_missing_pids_resolves_as_vanished,
    a_thousand_of_ten_thousand_shims_exit_at_once,
);

/// Held by a test that has thousands of children, so that one such test runs at a time.
static MANY_CHILDREN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const LIVE: usize = 10_000;

async fn a_burst_of_missing_pids_resolves_as_vanished(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let start = Instant::now();
    let highest = u32::try_from(i32::MAX).unwrap();
    for pid in highest - 1_023..=highest {
        drop(fixture.reaper.register(pid).unwrap());
    }
    fixture.expect(0, 1_024, 0).await;
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(fixture.reaper.registered().is_empty());
}

async fn a_thousand_of_ten_thousand_shims_exit_at_once(builder: ReaperBuilder) {
    let _guard = MANY_CHILDREN.lock().await;
    allow_descriptors(LIVE as u64 + 500);
    let fixture = Fixture::new(builder.owner_grace(Duration::ZERO));
    let mut idle = IdleChildren::fork(LIVE);
    for pid in &idle.0 {
        drop(fixture.reaper.register(*pid).unwrap());
    }
    fixture.expect(0, 0, LIVE as u64).await;

    let killed = idle.kill(1_000);
    fixture.expect(1_000, 0, LIVE as u64 - 1_000).await;
    assert!(killed.iter().all(|pid| is_gone(*pid)));
    assert!(
        idle.0
            .iter()
            .all(|pid| matches!(state_of(*pid), Some('S' | 'R')))
    );
    assert_eq!(fixture.reaper.registered().len(), LIVE - 1_000);

    let rest = idle.kill(LIVE - 1_000);
    fixture.expect(LIVE as u64, 0, 0).await;
    assert!(rest.iter().all(|pid| is_gone(*pid)));
}

/// The reaper sweeps without a pause during this test. A busy machine gets several tries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_sweep_does_not_delay_registering() {
    let _guard = MANY_CHILDREN.lock().await;
    let fixture = Fixture::new(
        ShimReaper::builder()
            .pidfd(false)
            .owner_grace(Duration::ZERO)
            .sweep_interval(Duration::from_millis(1)),
    );
    let mut idle = IdleChildren::fork(LIVE + 1_000);
    for pid in &idle.0[..LIVE] {
        drop(fixture.reaper.register(*pid).unwrap());
    }
    let mut p99 = Vec::new();
    for batch in idle.0[LIVE..].chunks(100) {
        let mut times: Vec<Duration> = Vec::new();
        for pid in batch {
            let start = Instant::now();
            let handle = fixture.reaper.register(*pid);
            times.push(start.elapsed());
            drop(handle.unwrap());
            tokio::task::yield_now().await;
        }
        times.sort();
        p99.push(times[times.len() - 2]);
    }
    assert!(
        p99.iter().any(|time| *time < Duration::from_millis(1)),
        "99th percentile of the time to register, per batch: {p99:?}"
    );
    assert!(fixture.reaper.stats().sweeps_completed > 0);
    let all = idle.kill(LIVE + 1_000);
    fixture.expect(all.len() as u64, 0, 0).await;
    eventually("all children are gone", || {
        all.iter().all(|pid| is_gone(*pid))
    })
    .await;
}
