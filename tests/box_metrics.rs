//! The metrics of a VMM runtime.

mod common;

use common::boxes::{exits_on_go, open_runtime, send_go, sleeping, start_box};
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

async fn wait_for_shims(runtime: &VmmRuntime, expected: (u64, u64, u64)) {
    let deadline = std::time::Instant::now() + common::DEADLINE;
    loop {
        let found = shims(&runtime.metrics().await);
        if found == expected {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{found:?}, expected {expected:?}"
        );
        common::pause().await;
    }
}

#[tokio::test]
async fn every_box_and_every_shim_is_counted_once() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let stopped = start_box(&runtime, sleeping()).await;
    let killed = start_box(&runtime, sleeping()).await;
    let ended = start_box(&runtime, exits_on_go(0)).await;
    let removed = start_box(&runtime, sleeping()).await;
    let broken = runtime
        .create(BoxSpec::new(["no-such-program"]))
        .await
        .unwrap();
    runtime.start(&broken.id).await.unwrap_err();
    assert_eq!(boxes(&runtime.metrics().await), (5, 1, 0, 4));
    wait_for_shims(&runtime, (1, 0, 4)).await;

    runtime.stop(&stopped.id).await.unwrap();
    kill(killed.pid.unwrap(), Signal::SIGKILL);
    runtime.wait(&killed.id).await.unwrap();
    send_go(&home, &ended.id);
    runtime.wait(&ended.id).await.unwrap();
    runtime.remove(&removed.id, true).await.unwrap();
    assert_eq!(boxes(&runtime.metrics().await), (5, 2, 3, 0));
    // A payload that could not start has not crashed.
    assert_eq!(runtime.metrics().await.boxes_crashed_total, 1);
    wait_for_shims(&runtime, (5, 0, 0)).await;
}

#[tokio::test]
async fn a_shim_of_an_earlier_runtime_counts_as_vanished() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping().detached(true)).await;
    drop(runtime);
    let runtime = open_runtime(&home).await;
    wait_for_shims(&runtime, (0, 0, 1)).await;
    runtime.stop(&bx.id).await.unwrap();
    wait_for_shims(&runtime, (0, 1, 0)).await;
}

#[tokio::test]
async fn metrics_show_whether_the_reaper_runs() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let before = runtime.metrics().await;
    assert!(before.shim_reaper_alive);
    eventually("the idle reaper sweeps", || {
        let now = futures::executor::block_on(runtime.metrics());
        now.shim_reaper_sweeps > before.shim_reaper_sweeps + 1
            && now.shim_reaper_last_sweep_at_ms > before.shim_reaper_last_sweep_at_ms
    })
    .await;
    assert_eq!(runtime.metrics().await.shim_reaper_respawns, 0);
    runtime.shutdown(std::time::Duration::ZERO).await;
    assert!(!runtime.metrics().await.shim_reaper_alive);
}
