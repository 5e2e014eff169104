//! The metrics of a VMM runtime.

mod common;

use common::boxes::{exits_on_go, open_runtime, script, send_go, sleeping, start_box};
use common::own_process::{block_on, in_own_process};
use common::{KillOnDrop, eventually, eventually_blocking, exits_with, is_zombie, kill, sleeper};
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};
use tokio::io::AsyncWriteExt;
use vmm_protocol::procfs::Stat;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxSpec, BoxUsage, ExecSpec, ExecutionMetrics, Removal, RuntimeError, RuntimeMetrics,
    VmmRuntime,
};

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
    runtime.remove(&removed.id, Removal::Force).await.unwrap();
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
    let cpu_time = measure().cpu_time.unwrap();
    eventually("the CPU time rises", || {
        measure().cpu_time.unwrap() > cpu_time
    })
    .await;
    runtime.stop(&bx.id).await.unwrap();
    assert_eq!(measure(), BoxUsage::default());
    let unknown = runtime.usage("unknown").await;
    assert!(matches!(unknown, Err(RuntimeError::NotFound { .. })));
}

fn command(script: &str) -> ExecSpec {
    ExecSpec::new("", ["sh", "-c", script])
}

#[tokio::test]
async fn commands_are_counted_by_how_they_end_with_or_without_a_client() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let id = start_box(&runtime, sleeping()).await.id;
    let other = start_box(&runtime, sleeping()).await.id;
    let counted = |id| runtime.execution_metrics(id).unwrap();

    let mut cat = command("cat; echo error >&2");
    cat.stdin = true;
    let mut execution = runtime.exec(&id, cat).await.unwrap();
    let mut stdin = execution.stdin.take().unwrap();
    stdin.write_all(b"seven b").await.unwrap();
    drop(stdin);
    execution.output().await.unwrap();
    let failed = runtime.exec(&id, command("exit 3")).await.unwrap();
    failed.wait().await.unwrap();
    let missing = ExecSpec::new("", ["/nonexistent"]);
    runtime.exec(&id, missing.clone()).await.unwrap_err();
    runtime.start_execution(&id, missing).await.unwrap_err();
    // No client is attached to these when they end.
    let left = runtime.exec(&id, command("sleep 1000")).await.unwrap();
    let left_id = left.id().to_owned();
    drop(left);
    let started = runtime.start_execution(&id, command("sleep 1000")).await;
    let started = started.unwrap();
    assert_eq!((counted(&id).started, counted(&id).running), (4, 2));
    runtime.signal_execution(&id, &left_id, 15).await.unwrap();
    runtime.signal_execution(&id, &started, 15).await.unwrap();
    eventually("the ends are counted", || counted(&id).running == 0).await;

    let metrics = counted(&id);
    assert_eq!((metrics.started, metrics.start_failures), (4, 2));
    assert_eq!(
        (metrics.succeeded, metrics.failed, metrics.signaled),
        (1, 1, 2)
    );
    let bytes = (
        metrics.stdin_bytes,
        metrics.stdout_bytes,
        metrics.stderr_bytes,
    );
    assert_eq!(bytes, (7, 7, 6));
    assert_eq!(counted(&other), ExecutionMetrics::default());

    runtime
        .start_execution(&other, command("sleep 1000"))
        .await
        .unwrap();
    kill(
        runtime.info(&other).await.unwrap().pid.unwrap(),
        Signal::SIGKILL,
    );
    eventually("the lost command is counted", || counted(&other).lost == 1).await;
    let of_runtime = runtime.metrics().await.executions;
    assert_eq!((of_runtime.started, of_runtime.running), (5, 0));
    runtime.remove(&id, Removal::Force).await.unwrap();
    runtime.remove(&other, Removal::Force).await.unwrap();
}

#[test]
fn zombies_are_counted_until_they_are_reaped() {
    let test = "zombies_are_counted_until_they_are_reaped";
    in_own_process(test, || {
        let home = PerTestBoxHome::new();
        let runtime = block_on(open_runtime(&home));
        let count = || futures::executor::block_on(runtime.count_zombies());
        if count().is_none() {
            common::skip("the kernel does not list children");
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
