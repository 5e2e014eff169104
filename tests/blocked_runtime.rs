//! A reaper with a thread of its own needs nobody's runtime.

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{eventually_blocking, exits_on_eof, exits_with, is_gone};
use shim_reaper::ShimReaper;

#[test]
fn a_dedicated_reaper_collects_while_the_callers_runtime_is_blocked() {
    for pidfd in [true, false] {
        let reaper = ShimReaper::builder()
            .pidfd(pidfd)
            .start_dedicated()
            .unwrap();
        let mut lifelines = Vec::new();
        let mut pids = Vec::new();
        for _ in 0..50 {
            let mut child = exits_on_eof(1).spawn().unwrap();
            lifelines.push(child.stdin.take());
            pids.push(child.id());
            drop(reaper.register_child(child).unwrap());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        // Both workers and the blocking of them last until all are collected, 2 s at the least.
        let (blocked, is_blocked) = mpsc::channel();
        let mut releases = Vec::new();
        for _ in 0..2 {
            let (release, released) = mpsc::channel::<()>();
            releases.push(release);
            let blocked = blocked.clone();
            runtime.spawn(async move {
                blocked.send(()).unwrap();
                let _ = released.recv();
            });
        }
        is_blocked.recv().unwrap();
        is_blocked.recv().unwrap();
        let start = Instant::now();
        drop(lifelines);
        for pid in pids {
            eventually_blocking("collected meanwhile", || is_gone(pid));
        }
        assert_eq!(reaper.stats().reaped_total, 50);
        eventually_blocking("2 s have passed", || {
            start.elapsed() > Duration::from_secs(2) && reaper.worker_alive()
        });
        drop(releases);
        drop(runtime);
        assert!(reaper.worker_alive());
        assert!(reaper.shutdown_sync().still_running.is_empty());
    }
}

#[test]
fn synchronous_code_can_spawn_and_await_without_a_runtime() {
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    let exit = futures::executor::block_on(async {
        let handle = reaper.spawn(exits_with(12)).await.unwrap();
        handle.await.unwrap()
    });
    assert_eq!(exit.code(), Some(12));
    let given = exits_with(13).spawn().unwrap();
    let handle = reaper.register_child(given).unwrap();
    assert_eq!(
        futures::executor::block_on(handle).unwrap().code(),
        Some(13)
    );
}

#[test]
fn a_dedicated_thread_ends_with_the_shutdown_and_with_its_last_reaper() {
    common::own_process::in_own_process(
        "a_dedicated_thread_ends_with_the_shutdown_and_with_its_last_reaper",
        || {
            let shut_down = ShimReaper::builder().start_dedicated().unwrap();
            let dropped = ShimReaper::builder().start_dedicated().unwrap();
            eventually_blocking("both run", || reaper_threads() == 2);
            shut_down.shutdown_sync();
            eventually_blocking("the first has ended", || reaper_threads() == 1);
            drop(dropped.clone());
            drop(dropped);
            eventually_blocking("the second has ended", || reaper_threads() == 0);
        },
    );
}

fn reaper_threads() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .filter(|name| name.trim() == "shim-reaper")
        .count()
}
