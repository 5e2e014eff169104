//! The metrics of a VMM runtime.

mod common;

use common::boxes::{exits_on_go, open_runtime, script, send_go, sleeping, start_box};
use common::own_process::{block_on, in_own_process};
use common::{KillOnDrop, eventually, eventually_blocking, exits_with, is_zombie, kill, sleeper};
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};
use vmm_protocol::procfs::Stat;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, BoxUsage, RuntimeError, RuntimeMetrics, VmmRuntime};

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

#[tokio::test]
async fn usage_covers_the_shim_and_its_descendants_while_the_box_runs() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, script("while :; do :; done").cpus(1)).await;
    // Without a tokio runtime of the caller.
    let measure = || futures::executor::block_on(runtime.usage(&bx.id)).unwrap();
    eventually("the payload uses CPU time", || {
        let percent = measure().cpu_percent.unwrap();
        assert!((0.0..=100.0).contains(&percent), "{percent}");
        percent > 0.0
    })
    .await;
    let page_size = sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap();
    let memory_of = |pid: Option<u32>| {
        let stat = Stat::of(pid.unwrap()).unwrap().unwrap();
        stat.rss_pages * u64::try_from(page_size).unwrap()
    };
    let (shim, payload) = (memory_of(bx.pid), memory_of(bx.payload_pid));
    let memory = measure().memory_bytes.unwrap();
    assert!(memory > shim + payload / 2, "{memory}: {shim}, {payload}");
    runtime.stop(&bx.id).await.unwrap();
    assert_eq!(measure(), BoxUsage::default());
    let unknown = runtime.usage("unknown").await;
    assert!(matches!(unknown, Err(RuntimeError::NotFound { .. })));
}

#[test]
fn zombies_are_counted_until_they_are_reaped() {
    let test = "zombies_are_counted_until_they_are_reaped";
    in_own_process(test, || {
        let home = PerTestBoxHome::new();
        let runtime = block_on(open_runtime(&home));
        let count = || futures::executor::block_on(runtime.count_zombies());
        if count().is_none() {
            eprintln!("SKIPPED: the kernel does not list children");
            return;
        }
        let mut running = KillOnDrop::default();
        running.spawn(sleeper()).unwrap();
        let mut child = exits_with(0).spawn().unwrap();
        eventually_blocking("the child exits", || is_zombie(child.id()));
        assert_eq!(count(), Some(1));
        child.wait().unwrap();
        assert_eq!(count(), Some(0));
    });
}
