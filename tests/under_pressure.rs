//! Bursts, and thousands of live shims.

mod common;

use std::time::{Duration, Instant};

use common::herd::Herd;
use common::{Fixture, allow_descriptors, eventually, is_gone, state_of};
use shim_reaper::{ReaperBuilder, ShimReaper};

in_both_modes!(
    a_burst_of_nonexistent_pids_drains_as_vanished,
    a_thousand_of_ten_thousand_die_at_once,
);

/// Herds are large: one at a time.
static ONE_HERD: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const LIVE: usize = 10_000;

async fn a_burst_of_nonexistent_pids_drains_as_vanished(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let start = Instant::now();
    let highest = u32::try_from(i32::MAX).unwrap();
    for pid in highest - 1_023..=highest {
        drop(fixture.reaper.register(pid).await.unwrap());
    }
    fixture.expect(0, 1_024, 0).await;
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(fixture.reaper.registered().await.is_empty());
}

async fn a_thousand_of_ten_thousand_die_at_once(builder: ReaperBuilder) {
    let _one = ONE_HERD.lock().await;
    allow_descriptors(LIVE as u64 + 500);
    let fixture = Fixture::new(builder.owner_grace(Duration::ZERO));
    let mut herd = Herd::of(LIVE);
    for pid in &herd.0 {
        drop(fixture.reaper.register(*pid).await.unwrap());
    }
    fixture.expect(0, 0, LIVE as u64).await;

    let culled = herd.cull(1_000);
    fixture.expect(1_000, 0, LIVE as u64 - 1_000).await;
    assert!(culled.iter().all(|pid| is_gone(*pid)));
    assert!(
        herd.0
            .iter()
            .all(|pid| matches!(state_of(*pid), Some('S' | 'R')))
    );
    assert_eq!(fixture.reaper.registered().await.len(), LIVE - 1_000);

    let rest = herd.cull(LIVE - 1_000);
    fixture.expect(LIVE as u64, 0, 0).await;
    assert!(rest.iter().all(|pid| is_gone(*pid)));
}

/// The sweep goes on without a pause meanwhile. A busy machine gets several tries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registering_is_not_delayed_by_a_long_sweep() {
    let _one = ONE_HERD.lock().await;
    let fixture = Fixture::new(
        ShimReaper::builder()
            .pidfd(false)
            .owner_grace(Duration::ZERO)
            .sweep_interval(Duration::from_millis(1)),
    );
    let mut herd = Herd::of(LIVE + 1_000);
    for pid in &herd.0[..LIVE] {
        drop(fixture.reaper.register(*pid).await.unwrap());
    }
    let mut p99 = Vec::new();
    for batch in herd.0[LIVE..].chunks(100) {
        let mut times: Vec<Duration> = Vec::new();
        for pid in batch {
            let start = Instant::now();
            let handle = fixture.reaper.register(*pid).await;
            times.push(start.elapsed());
            drop(handle.unwrap());
            tokio::task::yield_now().await;
        }
        times.sort();
        p99.push(times[times.len() - 2]);
    }
    assert!(
        p99.iter().any(|time| *time < Duration::from_millis(1)),
        "the 99th percentile of registering, per batch: {p99:?}"
    );
    assert!(fixture.reaper.stats().sweeps_completed > 0);
    let all = herd.cull(LIVE + 1_000);
    fixture.expect(all.len() as u64, 0, 0).await;
    eventually("all gone", || all.iter().all(|pid| is_gone(*pid))).await;
}
