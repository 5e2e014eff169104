//! `stop_all` and `shutdown_stopping` leave no child behind, and a shutdown reaps what was killed
//! before it.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use common::own_process::block_on;
use common::{
    DEADLINE, Fixture, KillOnDrop, as_pid, eventually, is_gone, is_zombie, shell, sleeper,
};
use futures::poll;
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use nix::sys::wait::waitpid;
use shim_reaper::{
    ReaperBuilder, ReaperClosed, RegisterErrorKind, ShimHandle, ShimReaper, SpawnOptions,
};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

const SHIMS: usize = 10;

/// Long enough for a sleeper to die of SIGTERM on a loaded machine.
const SHORT: Duration = Duration::from_secs(2);

const SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// Longer than any test runs.
const NEVER: Duration = Duration::from_secs(1_000_000);

in_both_modes!(
    tasks_that_stop_their_shims_on_the_token_of_the_reaper_get_the_exits,
    the_stopping_token_ends_shims_that_no_task_stops,
    stop_all_sends_sigterm_first_and_the_reaper_continues,
    shims_that_ignore_sigterm_are_killed_after_the_grace_period,
    attached_processes_are_left_running,
    a_stopping_shutdown_refuses_new_shims_at_once,
    a_dropped_stopping_shutdown_continues,
    every_caller_gets_the_same_report,
    a_shutdown_after_the_stopping_token_stops_the_shims_too,
    a_shutdown_during_a_stopping_shutdown_waits_for_it,
    a_stop_reports_the_shims_that_a_concurrent_shutdown_leaves_running,
    shims_that_were_killed_before_a_shutdown_are_reaped,
    a_stopped_process_that_is_not_a_child_gets_no_signal,
);

async fn spawn_sleepers(fixture: &Fixture) -> Vec<ShimHandle> {
    let mut handles = Vec::new();
    for _ in 0..SHIMS {
        handles.push(fixture.reaper.spawn(sleeper()).unwrap());
    }
    handles
}

/// Spawns a shim that ignores SIGTERM, and returns when it does.
async fn spawn_stubborn(reaper: &ShimReaper) -> ShimHandle {
    let mut shim = shell("trap '' TERM; echo ready; while :; do sleep 1; done");
    shim.stdout(Stdio::piped());
    let handle = reaper.spawn(shim).unwrap();
    let mut ready = [0; 6];
    let mut stdout = handle.take_stdout().unwrap();
    stdout.read_exact(&mut ready).await.unwrap();
    handle
}

async fn tasks_that_stop_their_shims_on_the_token_of_the_reaper_get_the_exits(
    builder: ReaperBuilder,
) {
    let token = CancellationToken::new();
    let fixture = Fixture::new(builder.shutdown_stopping_token(token.clone(), DEADLINE));
    let mut tasks = Vec::new();
    let handles = spawn_sleepers(&fixture).await;
    for handle in handles.clone() {
        let token = token.clone();
        tasks.push(tokio::spawn(async move {
            let mut exit = handle.clone();
            tokio::select! {
                exit = &mut exit => exit,
                () = token.cancelled() => handle.stop(DEADLINE).await,
            }
        }));
    }
    token.cancel();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().signal(), Some(SIGTERM as i32));
    }
    let report = fixture.reaper.shutdown().await;
    assert!(report.killed.is_empty() && report.still_running.is_empty());
    for handle in handles {
        assert!(is_gone(handle.id()));
    }
    fixture.expect(SHIMS as u64, 0, 0).await;
}

async fn the_stopping_token_ends_shims_that_no_task_stops(builder: ReaperBuilder) {
    let token = CancellationToken::new();
    let fixture = Fixture::new(builder.shutdown_stopping_token(token.clone(), SHORT));
    let mut handles = spawn_sleepers(&fixture).await;
    let stubborn = spawn_stubborn(&fixture.reaper).await;
    handles.push(stubborn.clone());
    token.cancel();
    // The worker shuts down without a call of the reaper.
    for handle in &handles {
        eventually("the shim is reaped", || is_gone(handle.id())).await;
    }
    assert_eq!(stubborn.await.unwrap().signal(), Some(SIGKILL as i32));
    eventually("the reaper has shut down", || {
        !fixture.reaper.worker_alive()
    })
    .await;
    fixture.expect(handles.len() as u64, 0, 0).await;
}

async fn stop_all_sends_sigterm_first_and_the_reaper_continues(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handles = spawn_sleepers(&fixture).await;
    let report = fixture.reaper.stop_all(DEADLINE).await;
    assert_eq!(report.stopped, SHIMS as u64);
    assert!(report.killed.is_empty() && report.still_running.is_empty());
    for handle in handles {
        assert_eq!(handle.await.unwrap().signal(), Some(SIGTERM as i32));
    }
    fixture.expect(SHIMS as u64, 0, 0).await;

    let later = fixture.reaper.spawn(sleeper()).unwrap();
    assert!(later.is_running());
    let reaper = fixture.reaper.clone();
    let report = tokio::task::spawn_blocking(move || reaper.stop_all_sync(DEADLINE));
    assert_eq!(report.await.unwrap().stopped, 1);
    assert_eq!(later.await.unwrap().signal(), Some(SIGTERM as i32));
    assert!(fixture.reaper.worker_alive());
}

async fn shims_that_ignore_sigterm_are_killed_after_the_grace_period(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let stubborn = spawn_stubborn(&fixture.reaper).await;
    let handles = spawn_sleepers(&fixture).await;
    let report = fixture.reaper.shutdown_stopping(SHORT).await;
    assert_eq!(report.killed, [stubborn.id()]);
    assert!(report.still_running.is_empty());
    assert!(is_gone(stubborn.id()));
    assert_eq!(stubborn.await.unwrap().signal(), Some(SIGKILL as i32));
    for handle in handles {
        assert_eq!(handle.await.unwrap().signal(), Some(SIGTERM as i32));
    }
    fixture.expect(SHIMS as u64 + 1, 0, 0).await;
}

async fn attached_processes_are_left_running(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut children = KillOnDrop::default();
    let pid = children.spawn(sleeper()).unwrap();
    let attached = fixture.reaper.attach(pid).unwrap();
    assert_eq!(fixture.reaper.stop_all(SHORT).await.stopped, 0);
    let report = fixture.reaper.shutdown_stopping(SHORT).await;
    assert_eq!(report.still_running, [pid]);
    assert!(attached.is_running());
    assert!(!is_gone(pid) && !is_zombie(pid));
}

/// Until the worker notices that it is not a child.
async fn a_stopped_process_that_is_not_a_child_gets_no_signal(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut parent = shell("sleep 1000 & echo $!; wait");
    parent.stdout(Stdio::piped());
    let parent = fixture.reaper.spawn(parent).unwrap();
    let mut line = [0; 32];
    let read = parent.take_stdout().unwrap().read(&mut line).await.unwrap();
    let pid: u32 = std::str::from_utf8(&line[..read])
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let other = ShimReaper::builder().start();
    drop(other.register(pid).unwrap());
    assert_eq!(other.stop_all_sync(SHORT).stopped, 0);
    assert!(!is_gone(pid) && !is_zombie(pid));
    common::kill(pid, SIGKILL);
    fixture.reaper.shutdown_stopping(DEADLINE).await;
}

async fn a_stopping_shutdown_refuses_new_shims_at_once(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let stubborn = spawn_stubborn(&fixture.reaper).await;
    let reaper = fixture.reaper.clone();
    let shutdown = tokio::spawn(async move { reaper.shutdown_stopping(NEVER).await });
    eventually("new shims are refused", || {
        let child = sleeper().spawn().unwrap();
        match fixture.reaper.register_child(child) {
            Ok(handle) => {
                handle.start_kill().unwrap();
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), RegisterErrorKind::Closed);
                drop(KillOnDrop(vec![error.into_child().unwrap()]));
                true
            }
        }
    })
    .await;
    let error = fixture.reaper.spawn(sleeper()).unwrap_err();
    assert!(error.get_ref().unwrap().is::<ReaperClosed>(), "{error}");
    // The shim is still reaped, and the shutdown waits for no longer than it runs.
    stubborn.start_kill().unwrap();
    assert_eq!(stubborn.await.unwrap().signal(), Some(SIGKILL as i32));
    assert!(shutdown.await.unwrap().still_running.is_empty());
}

async fn a_dropped_stopping_shutdown_continues(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handles = spawn_sleepers(&fixture).await;
    assert!(poll!(pin!(fixture.reaper.shutdown_stopping(DEADLINE))).is_pending());
    for handle in handles {
        assert_eq!(handle.await.unwrap().signal(), Some(SIGTERM as i32));
    }
    eventually("the reaper has shut down", || {
        !fixture.reaper.worker_alive()
    })
    .await;
}

async fn every_caller_gets_the_same_report(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let stubborn = spawn_stubborn(&fixture.reaper).await;
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let reaper = fixture.reaper.clone();
            tokio::spawn(async move { reaper.shutdown_stopping(SHORT).await })
        })
        .collect();
    let mut reports = Vec::new();
    for caller in callers {
        reports.push(caller.await.unwrap());
    }
    reports.push(fixture.reaper.shutdown_sync());
    for report in &reports {
        assert_eq!(report, &reports[0]);
    }
    assert_eq!(reports[0].killed, [stubborn.id()]);
}

async fn a_shutdown_after_the_stopping_token_stops_the_shims_too(builder: ReaperBuilder) {
    for sync in [true, false] {
        let token = CancellationToken::new();
        let builder = builder.clone();
        let fixture = Fixture::new(builder.shutdown_stopping_token(token.clone(), DEADLINE));
        let handles = spawn_sleepers(&fixture).await;
        token.cancel();
        let report = if sync {
            fixture.reaper.shutdown_sync()
        } else {
            fixture.reaper.shutdown().await
        };
        assert!(report.killed.is_empty() && report.still_running.is_empty());
        for handle in handles {
            assert_eq!(handle.await.unwrap().signal(), Some(SIGTERM as i32));
        }
    }
}

async fn a_shutdown_during_a_stopping_shutdown_waits_for_it(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let stubborn = spawn_stubborn(&fixture.reaper).await;
    let reaper = fixture.reaper.clone();
    let stopping = tokio::spawn(async move { reaper.shutdown_stopping(SHORT).await });
    eventually("new shims are refused", || {
        let spawned = fixture.reaper.spawn(sleeper());
        !spawned.is_ok_and(|shim| shim.start_kill().is_ok())
    })
    .await;
    let report = fixture.reaper.shutdown().await;
    assert_eq!(report.killed, [stubborn.id()]);
    assert_eq!(stopping.await.unwrap(), report);
    assert_eq!(stubborn.await.unwrap().signal(), Some(SIGKILL as i32));
}

async fn a_stop_reports_the_shims_that_a_concurrent_shutdown_leaves_running(
    builder: ReaperBuilder,
) {
    let fixture = Fixture::new(builder);
    let mut shim = shell("trap 'echo t' TERM; echo r; while :; do sleep 0.1; done");
    shim.stdout(Stdio::piped());
    let stubborn = fixture.reaper.spawn(shim).unwrap();
    let mut stdout = stubborn.take_stdout().unwrap();
    let mut line = [0; 2];
    stdout.read_exact(&mut line).await.unwrap();

    let reaper = fixture.reaper.clone();
    let stop = tokio::spawn(async move { reaper.stop_all(SHORT).await });
    // It has got SIGTERM.
    stdout.read_exact(&mut line).await.unwrap();
    let left = fixture.reaper.shutdown().await.still_running;
    assert_eq!(left, [stubborn.id()]);
    let report = stop.await.unwrap();
    assert_eq!(
        (report.stopped, report.killed, report.still_running),
        (0, vec![], left)
    );
    stubborn.start_kill().unwrap();
    waitpid(as_pid(stubborn.id()), None).unwrap();
}

async fn shims_that_were_killed_before_a_shutdown_are_reaped(builder: ReaperBuilder) {
    for sync in [true, false] {
        let fixture = Fixture::new(builder.clone());
        let handles = spawn_sleepers(&fixture).await;
        let options = SpawnOptions::new().kill_on_drop(true);
        let dropped = fixture.reaper.spawn_with(sleeper(), options).unwrap();
        let mut pids: Vec<u32> = handles.iter().map(ShimHandle::id).collect();
        pids.push(dropped.id());
        drop(dropped);
        for handle in &handles {
            handle.start_kill().unwrap();
        }
        let report = if sync {
            fixture.reaper.shutdown_sync()
        } else {
            fixture.reaper.shutdown().await
        };
        assert!(report.still_running.is_empty(), "{report:?}");
        assert!(pids.into_iter().all(is_gone));
        for handle in handles {
            assert_eq!(handle.await.unwrap().signal(), Some(SIGKILL as i32));
        }
        fixture.expect(SHIMS as u64 + 1, 0, 0).await;
    }
}

#[test]
fn killed_shims_are_reaped_when_the_token_shuts_down() {
    for pidfd in [true, false] {
        block_on(async {
            let token = CancellationToken::new();
            let builder = ShimReaper::builder().pidfd(pidfd);
            let fixture = Fixture::new(builder.shutdown_token(token.clone()));
            let handles = spawn_sleepers(&fixture).await;
            for handle in &handles {
                handle.start_kill().unwrap();
            }
            token.cancel();
            for handle in handles {
                eventually("the shim is reaped", || is_gone(handle.id())).await;
                assert_eq!(handle.await.unwrap().signal(), Some(SIGKILL as i32));
            }
        });
    }
}

/// Nothing drives the tokio runtime of the reaper while the shutdown runs.
#[test]
fn a_stopping_shutdown_works_in_a_blocked_tokio_runtime() {
    for pidfd in [true, false] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let fixture = Fixture::new(ShimReaper::builder().pidfd(pidfd));
            let handles = spawn_sleepers(&fixture).await;
            let stubborn = spawn_stubborn(&fixture.reaper).await;
            let report = fixture.reaper.shutdown_stopping_sync(SHORT);
            assert_eq!(report.killed, [stubborn.id()]);
            assert!(report.still_running.is_empty());
            assert!(handles.iter().all(|handle| is_gone(handle.id())));
            assert!(is_gone(stubborn.id()));
        });
    }
}

/// In an executor that has no timers, and outside the tokio runtime of the reaper.
#[test]
fn stop_works_outside_a_tokio_runtime() {
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    futures::executor::block_on(async {
        let handle = reaper.spawn(sleeper()).unwrap();
        let exit = handle.stop(DEADLINE).await.unwrap();
        assert_eq!(exit.signal(), Some(SIGTERM as i32));

        let stubborn = spawn_stubborn(&reaper).await;
        let exit = stubborn.stop(SHORT).await.unwrap();
        assert_eq!(exit.signal(), Some(SIGKILL as i32));

        let handle = reaper.spawn(sleeper()).unwrap();
        let exit = handle.stop(Duration::MAX).await.unwrap();
        assert_eq!(exit.signal(), Some(SIGTERM as i32));
    });
}

#[test]
fn stop_works_in_a_tokio_runtime_without_timers() {
    let reaper = ShimReaper::builder().start_dedicated().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let handle = reaper.spawn(sleeper()).unwrap();
        handle.stop(DEADLINE).await.unwrap();
        assert!(reaper.stop_all(SHORT).await.killed.is_empty());
    });
}

#[tokio::test]
async fn a_dropped_stop_sends_no_further_signal() {
    let fixture = Fixture::new(ShimReaper::builder().sweep_interval(SWEEP_INTERVAL));
    let stubborn = spawn_stubborn(&fixture.reaper).await;
    tokio::select! {
        biased;
        _ = stubborn.stop(20 * SWEEP_INTERVAL) => panic!("the shim ignores SIGTERM"),
        () = fixture.sweeps(1) => {}
    }
    fixture.sweeps(40).await;
    assert!(stubborn.is_running());
    stubborn.stop(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn is_running_asks_the_kernel_after_a_shutdown() {
    for pidfd in [true, false] {
        let reaper = ShimReaper::builder().pidfd(pidfd).start();
        let handle = reaper.spawn(sleeper()).unwrap();
        assert_eq!(reaper.shutdown().await.still_running, [handle.id()]);
        assert!(handle.is_running());
        handle.start_kill().unwrap();
        eventually("the process has ended", || !handle.is_running()).await;
        assert!(is_zombie(handle.id()));
        waitpid(as_pid(handle.id()), None).unwrap();
        assert!(!handle.is_running());
    }
}
