//! A reaper on a dedicated thread needs no tokio runtime.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{eventually_blocking, exits_on_eof, exits_with, is_gone, sleeper};
use shim_reaper::ShimReaper;

#[test]
fn a_dedicated_reaper_reaps_while_the_callers_tokio_runtime_is_blocked() {
    for pidfd in [true, false] {
        let reaper = ShimReaper::builder()
            .pidfd(pidfd)
            .start_dedicated()
            .unwrap();
        let mut stdins = Vec::new();
        let mut pids = Vec::new();
        for _ in 0..50 {
            let mut child = exits_on_eof(1).spawn().unwrap();
            stdins.push(child.stdin.take());
            pids.push(child.id());
            drop(reaper.register_child(child).unwrap());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        // Blocks both workers until all children are reaped, and for 2 s at least.
        let (blocked_sender, blocked) = mpsc::channel();
        let mut releases = Vec::new();
        for _ in 0..2 {
            let (release, wait_release) = mpsc::channel::<()>();
            releases.push(release);
            let blocked_sender = blocked_sender.clone();
            runtime.spawn(async move {
                blocked_sender.send(()).unwrap();
                let _ = wait_release.recv();
            });
        }
        blocked.recv().unwrap();
        blocked.recv().unwrap();
        let start = Instant::now();
        drop(stdins);
        for pid in pids {
            eventually_blocking("the child is reaped", || is_gone(pid));
        }
        // The thread counts an exit after it has reaped the child.
        eventually_blocking("all exits are counted", || {
            reaper.stats().reaped_total == 50
        });
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
fn a_dedicated_reaper_serves_synchronous_code() {
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    let exit = futures::executor::block_on(async {
        let handle = reaper.spawn(exits_with(12)).unwrap();
        handle.await.unwrap()
    });
    assert_eq!(exit.code(), Some(12));
    let child = exits_with(13).spawn().unwrap();
    let handle = reaper.register_child(child).unwrap();
    assert_eq!(
        futures::executor::block_on(handle).unwrap().code(),
        Some(13)
    );
}

#[test]
fn a_dedicated_thread_ends_after_shutdown_or_with_the_last_reaper() {
    common::own_process::in_own_process(
        "a_dedicated_thread_ends_after_shutdown_or_with_the_last_reaper",
        || {
            let first = ShimReaper::builder().start_dedicated().unwrap();
            let second = ShimReaper::builder().start_dedicated().unwrap();
            eventually_blocking("both threads run", || reaper_threads() == 2);
            first.shutdown_sync();
            eventually_blocking("the first thread ends", || reaper_threads() == 1);
            drop(second.clone());
            drop(second);
            eventually_blocking("the second thread ends", || reaper_threads() == 0);
        },
    );
}

#[test]
fn a_dedicated_thread_blocks_in_the_epoll_of_pidfds() {
    common::own_process::in_own_process("a_dedicated_thread_blocks_in_the_epoll_of_pidfds", || {
        let reaper = ShimReaper::builder().start_dedicated().unwrap();
        let handle = reaper.spawn(exits_with(12)).unwrap();
        assert_eq!(handle.wait_blocking().unwrap().code(), Some(12));
        assert_eq!(
            epolls(),
            1,
            "there is no second one, as that of a tokio runtime"
        );
    });
}

#[test]
fn a_dedicated_thread_drives_timers() {
    for pidfd in [true, false] {
        let builder = ShimReaper::builder().pidfd(pidfd);
        // No sweep wakes the thread.
        let reaper = builder
            .sweep_interval(Duration::from_secs(3600))
            .start_dedicated()
            .unwrap();
        let handle = reaper.spawn(sleeper()).unwrap();
        let expired = handle.wait_timeout(Duration::from_millis(20));
        assert_eq!(futures::executor::block_on(expired), Ok(None));
        handle.start_kill().unwrap();
        drop(reaper.shutdown_sync());
    }
}

#[test]
fn a_dedicated_thread_reaps_a_burst_without_a_sweep() {
    let reaper = ShimReaper::builder()
        .sweep_interval(Duration::from_secs(3600))
        .start_dedicated()
        .unwrap();
    let handles: Vec<_> = (0..300).map(|_| reaper.spawn(sleeper()).unwrap()).collect();
    handles
        .iter()
        .for_each(|handle| handle.start_kill().unwrap());
    for handle in handles {
        eventually_blocking("the shim is reaped", || is_gone(handle.id()));
    }
}

#[test]
fn a_dedicated_thread_sweeps_at_each_interval() {
    let reaper = ShimReaper::builder()
        .pidfd(false)
        .sweep_interval(Duration::from_millis(20))
        .start_dedicated()
        .unwrap();
    let sweeps = reaper.stats().sweeps_completed;
    eventually_blocking("sweeps take place", || {
        reaper.stats().sweeps_completed > sweeps + 3
    });
}

/// Returns the number of epoll descriptors of this process.
fn epolls() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|link| link.as_os_str() == "anon_inode:[eventpoll]")
        .count()
}

fn reaper_threads() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .filter(|name| name.trim() == "shim-reaper")
        .count()
}
