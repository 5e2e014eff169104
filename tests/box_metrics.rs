//! The numbers of a runtime, and what they give away.

mod common;

use common::boxes::{exits_on_go, go, open, sleeping, started};
use common::{eventually, kill};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, RuntimeMetrics, VmmRuntime};

fn boxes(metrics: &RuntimeMetrics) -> (u64, u64, u64, u64) {
    (
        metrics.boxes_created_total,
        metrics.boxes_failed_total,
        metrics.boxes_stopped_total,
        metrics.num_running_boxes,
    )
}

fn shims(metrics: &RuntimeMetrics) -> (u64, u64, u64) {
    (
        metrics.shim_reaped,
        metrics.shim_reaper_vanished,
        metrics.shim_reaper_registered,
    )
}

async fn until_shims(runtime: &VmmRuntime, wanted: (u64, u64, u64)) {
    let deadline = std::time::Instant::now() + common::DEADLINE;
    loop {
        let found = shims(&runtime.metrics().await);
        if found == wanted {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{found:?}, wanted {wanted:?}"
        );
        common::pause().await;
    }
}

#[tokio::test]
async fn every_box_and_every_shim_is_counted_once() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let stopped = started(&runtime, sleeping()).await;
    let killed = started(&runtime, sleeping()).await;
    let ended = started(&runtime, exits_on_go(0)).await;
    let removed = started(&runtime, sleeping()).await;
    let broken = runtime
        .create(BoxSpec::new(["no-such-program"]))
        .await
        .unwrap();
    runtime.start(&broken.id).await.unwrap_err();
    assert_eq!(boxes(&runtime.metrics().await), (5, 1, 0, 4));
    until_shims(&runtime, (1, 0, 4)).await;

    runtime.stop(&stopped.id).await.unwrap();
    kill(killed.pid.unwrap(), Signal::SIGKILL);
    runtime.wait(&killed.id).await.unwrap();
    go(&home, &ended.id);
    runtime.wait(&ended.id).await.unwrap();
    runtime.remove(&removed.id, true).await.unwrap();
    assert_eq!(boxes(&runtime.metrics().await), (5, 2, 3, 0));
    // The one that could not be run has not.
    assert_eq!(runtime.metrics().await.boxes_crashed_total, 1);
    until_shims(&runtime, (5, 0, 0)).await;
}

#[tokio::test]
async fn a_shim_of_an_earlier_runtime_is_observed_and_not_reaped() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let left = started(&runtime, sleeping().detached(true)).await;
    drop(runtime);
    let runtime = open(&home).await;
    until_shims(&runtime, (0, 0, 1)).await;
    runtime.stop(&left.id).await.unwrap();
    until_shims(&runtime, (0, 1, 0)).await;
}

#[tokio::test]
async fn a_reaper_that_runs_can_be_told_from_one_that_does_not() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let before = runtime.metrics().await;
    assert!(before.shim_reaper_alive);
    eventually("sweeps although nothing happens", || {
        let now = futures::executor::block_on(runtime.metrics());
        now.shim_reaper_sweeps > before.shim_reaper_sweeps + 1
            && now.shim_reaper_last_sweep_at_ms > before.shim_reaper_last_sweep_at_ms
    })
    .await;
    assert_eq!(runtime.metrics().await.shim_reaper_respawns, 0);
    runtime.shutdown(std::time::Duration::ZERO).await;
    assert!(!runtime.metrics().await.shim_reaper_alive);
}
