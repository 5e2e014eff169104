//! Shutdown ends the reaper after one final drain, and reports the shims that still run.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::zombie_processes,
    unsafe_code
)]

mod common;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use common::own_process::{block_on, in_own_process, in_own_process_unchecked};
use common::{
    DEADLINE, Fixture, KillOnDrop, as_pid, eventually, exits_on_eof, exits_with, is_gone,
    is_zombie, sleeper,
};
use futures::StreamExt;
use nix::libc;
use nix::sys::wait::waitpid;
use shim_reaper::{
    ReaperBuilder, ReaperClosed, RegisterErrorKind, ShimHandle, ShimReaper, ShutdownReport,
};
use tokio_util::sync::CancellationToken;

/// Longer than any test runs: a shutdown that waited for a sweep would never return.
const NEVER: Duration = Duration::from_secs(1_000_000);

in_both_modes!(
    shutdown_returns_promptly,
    shutdown_is_idempotent_from_many_tasks_at_once,
    cancelling_the_token_shuts_down,
    shutdown_does_not_cancel_the_token_of_the_caller,
    shutdown_drains_exited_shims,
    shutdown_reports_running_shims_and_closes_their_handles,
    a_closed_reaper_rejects_registrations,
    a_closed_reaper_returns_the_rejected_child,
    shutdown_sync_works_inside_a_multi_thread_tokio_runtime,
    shutdown_sync_works_from_drop,
    the_exit_stream_ends_after_the_drained_exits,
);

/// One shim that runs, and two that have exited: a child that the reaper owns, and a registered pid.
/// No sweep has seen the exits.
struct Scene {
    fixture: Fixture,
    running: ShimHandle,
    exited: Vec<ShimHandle>,
    children: KillOnDrop,
}

impl Scene {
    async fn new(builder: ReaperBuilder) -> Self {
        let fixture = Fixture::new(builder.sweep_interval(NEVER));
        // The first sweep runs at once.
        eventually("the first sweep completes", || {
            fixture.reaper.stats().sweeps_completed == 1
        })
        .await;
        let mut children = KillOnDrop::default();
        let pid = children.spawn(sleeper()).unwrap();
        let running = fixture.reaper.register(pid).unwrap();
        let mut exited = Vec::new();
        for code in [1, 2] {
            let mut child = exits_on_eof(code).spawn().unwrap();
            drop(child.stdin.take());
            let pid = child.id();
            exited.push(if code == 1 {
                fixture.reaper.register_child(child).unwrap()
            } else {
                fixture.reaper.register(pid).unwrap()
            });
            eventually("the shim exits", || is_zombie(pid) || is_gone(pid)).await;
        }
        Self {
            fixture,
            running,
            exited,
            children,
        }
    }

    async fn check(&self, report: &ShutdownReport) {
        assert_eq!(report.still_running, [self.running.id()]);
        assert!(report.drained <= 2);
        for (handle, code) in self.exited.iter().zip([1, 2]) {
            assert_eq!(handle.clone().await.unwrap().code(), Some(code));
            assert!(is_gone(handle.id()), "no zombie is left");
        }
        assert_eq!(self.running.clone().await.unwrap_err(), ReaperClosed);
        assert!(!self.fixture.reaper.worker_alive());
        self.fixture.expect(2, 0, 0).await;
        assert!(
            !is_gone(self.running.id()),
            "the running shim is left alone"
        );
    }
}

async fn shutdown_returns_promptly(builder: ReaperBuilder) {
    let scene = Scene::new(builder).await;
    let start = Instant::now();
    let report = scene.fixture.reaper.shutdown().await;
    assert!(
        start.elapsed() < DEADLINE,
        "shutdown does not wait for a sweep"
    );
    scene.check(&report).await;
}

async fn shutdown_is_idempotent_from_many_tasks_at_once(builder: ReaperBuilder) {
    let scene = Scene::new(builder).await;
    let tasks: Vec<_> = (0..50)
        .map(|i| {
            let reaper = scene.fixture.reaper.clone();
            tokio::spawn(async move {
                if i % 2 == 0 {
                    reaper.shutdown().await
                } else {
                    reaper.shutdown_sync()
                }
            })
        })
        .collect();
    for task in tasks {
        scene.check(&task.await.unwrap()).await;
    }
    scene.check(&scene.fixture.reaper.shutdown().await).await;
}

async fn cancelling_the_token_shuts_down(builder: ReaperBuilder) {
    let token = CancellationToken::new();
    let scene = Scene::new(builder.shutdown_token(token.clone())).await;
    token.cancel();
    // The worker shuts down without a call to `shutdown`.
    assert_eq!(scene.running.clone().await.unwrap_err(), ReaperClosed);
    scene.check(&scene.fixture.reaper.shutdown().await).await;
}

async fn shutdown_does_not_cancel_the_token_of_the_caller(builder: ReaperBuilder) {
    let token = CancellationToken::new();
    let fixture = Fixture::new(builder.shutdown_token(token.clone()));
    fixture.reaper.shutdown().await;
    assert!(!token.is_cancelled());
}

async fn shutdown_drains_exited_shims(builder: ReaperBuilder) {
    let pidfds = format!("{builder:?}").contains(" pidfd: true");
    let fixture = Fixture::new(builder.sweep_interval(NEVER));
    eventually("the first sweep completes", || {
        fixture.reaper.stats().sweeps_completed == 1
    })
    .await;
    let mut handles = Vec::new();
    for code in 0..20 {
        let child = exits_with(code).spawn().unwrap();
        handles.push(fixture.reaper.register(child.id()).unwrap());
    }
    for handle in &handles {
        eventually("the shim exits", || is_zombie(handle.id())).await;
        if pidfds {
            eventually("the handle resolves", || !handle.is_running()).await;
        }
    }
    // All are zombies within the grace period of their owner. Shutdown does not wait for it.
    let report = fixture.reaper.shutdown().await;
    assert_eq!(report.drained, 20);
    assert!(report.still_running.is_empty());
    for (code, handle) in (0..).zip(handles) {
        assert!(is_gone(handle.id()));
        assert_eq!(handle.await.unwrap().code(), Some(code));
    }
    fixture.expect(20, 0, 0).await;
}

async fn shutdown_reports_running_shims_and_closes_their_handles(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut handles = Vec::new();
    for _ in 0..10 {
        handles.push(fixture.reaper.spawn(sleeper()).unwrap());
    }
    handles.push(fixture.reaper.attach(1).unwrap());
    let tasks: Vec<_> = handles.iter().cloned().map(tokio::spawn).collect();
    let mut pids: Vec<u32> = handles.iter().map(ShimHandle::id).collect();
    pids.sort_unstable();

    assert_eq!(fixture.reaper.shutdown().await.still_running, pids);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap_err(), ReaperClosed);
    }
    assert!(fixture.reaper.registered().is_empty());
    // A handle can still signal its process.
    for handle in &handles[..10] {
        assert!(handle.is_running());
        handle.start_kill().unwrap();
        waitpid(as_pid(handle.id()), None).unwrap();
        assert!(!handle.is_running());
    }
    fixture.expect(0, 0, 0).await;
    assert_eq!(fixture.reaper.stats().without_pidfd, 0);
}

async fn a_closed_reaper_rejects_registrations(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    fixture.reaper.shutdown().await;
    let mut children = KillOnDrop::default();
    let pid = children.spawn(sleeper()).unwrap();
    for error in [
        fixture.reaper.register(pid).unwrap_err(),
        fixture.reaper.attach(pid).unwrap_err(),
    ] {
        assert_eq!(
            (error.pid(), error.kind()),
            (pid, RegisterErrorKind::Closed)
        );
    }
    let error = fixture.reaper.spawn(sleeper()).unwrap_err();
    assert!(error.get_ref().unwrap().is::<ReaperClosed>(), "{error}");
    fixture.expect(0, 0, 0).await;
}

async fn a_closed_reaper_returns_the_rejected_child(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    fixture.reaper.shutdown().await;
    let child = exits_with(31).spawn().unwrap();
    let error = fixture.reaper.register_child(child).unwrap_err();
    assert_eq!(error.kind(), RegisterErrorKind::Closed);
    assert_eq!(error.into_child().unwrap().wait().unwrap().code(), Some(31));
}

#[test]
fn a_closed_reaper_forks_no_child() {
    in_own_process("a_closed_reaper_forks_no_child", || {
        block_on(async {
            let fixture = Fixture::new(ShimReaper::builder());
            fixture.reaper.shutdown().await;
            // After a fork the error would be that the program does not exist.
            let missing = std::process::Command::new("/nonexistent/shim");
            let error = fixture.reaper.spawn(missing).unwrap_err();
            assert!(error.get_ref().unwrap().is::<ReaperClosed>(), "{error}");
            let status = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            assert_eq!(status, Err(nix::errno::Errno::ECHILD), "no child exists");
        });
    });
}

#[test]
fn a_shutdown_during_spawns_reports_every_child() {
    in_own_process("a_shutdown_during_spawns_reports_every_child", || {
        for round in 0..20 {
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder().pidfd(round % 2 == 0));
                let spawners: Vec<_> = (0..8)
                    .map(|_| {
                        let reaper = fixture.reaper.clone();
                        tokio::spawn(async move {
                            let mut handles = Vec::new();
                            while let Ok(handle) = reaper.spawn(sleeper()) {
                                handles.push(handle);
                                tokio::task::yield_now().await;
                            }
                            handles
                        })
                    })
                    .collect();
                eventually("some shims run", || fixture.reaper.stats().registered > 20).await;
                let report = fixture.reaper.shutdown().await;
                let mut running = Vec::new();
                for spawner in spawners {
                    for handle in spawner.await.unwrap() {
                        assert_eq!(handle.clone().await.unwrap_err(), ReaperClosed);
                        running.push(handle.id());
                        handle.start_kill().unwrap();
                        waitpid(as_pid(handle.id()), None).unwrap();
                    }
                }
                running.sort_unstable();
                assert_eq!(report.still_running, running);
                assert_eq!(waitpid(None, None), Err(nix::errno::Errno::ECHILD));
                fixture.expect(0, 0, 0).await;
            });
        }
    });
}

async fn shutdown_sync_works_inside_a_multi_thread_tokio_runtime(builder: ReaperBuilder) {
    let scene = Scene::new(builder).await;
    let reaper = scene.fixture.reaper.clone();
    let report = tokio::spawn(async move { reaper.shutdown_sync() })
        .await
        .unwrap();
    scene.check(&report).await;
}

async fn shutdown_sync_works_from_drop(builder: ReaperBuilder) {
    struct OnDrop(ShimReaper, Arc<OnceLock<ShutdownReport>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.1.set(self.0.shutdown_sync()).unwrap();
        }
    }
    let scene = Scene::new(builder).await;
    let report = Arc::new(OnceLock::new());
    let guard = OnDrop(scene.fixture.reaper.clone(), Arc::clone(&report));
    // The tokio runtime drops the guard with the aborted future.
    let task = tokio::spawn(async move {
        let _guard = guard;
        std::future::pending::<()>().await;
    });
    tokio::task::yield_now().await;
    task.abort();
    let _ = task.await;
    scene.check(report.get().unwrap()).await;
}

#[test]
fn shutdown_sync_works_inside_a_current_thread_tokio_runtime() {
    for pidfd in [true, false] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let scene = Scene::new(ShimReaper::builder().pidfd(pidfd)).await;
            let report = scene.fixture.reaper.shutdown_sync();
            scene.check(&report).await;
        });
    }
}

#[test]
fn shutdown_sync_works_outside_a_tokio_runtime() {
    for pidfd in [true, false] {
        // The tokio runtime of the reaper is gone before the shutdown.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let scene = runtime.block_on(Scene::new(ShimReaper::builder().pidfd(pidfd)));
        drop(runtime);
        let report = scene.fixture.reaper.shutdown_sync();
        futures::executor::block_on(async {
            assert_eq!(scene.running.clone().await.unwrap_err(), ReaperClosed);
        });
        block_on(scene.check(&report));

        let dedicated = ShimReaper::builder()
            .pidfd(pidfd)
            .start_dedicated()
            .unwrap();
        let handle = dedicated
            .register_child(exits_with(3).spawn().unwrap())
            .unwrap();
        let exit = futures::executor::block_on(handle).unwrap();
        assert_eq!(exit.code(), Some(3));
        assert_eq!(dedicated.shutdown_sync(), ShutdownReport::default());
    }
}

#[test]
fn shutdown_sync_works_from_an_atexit_handler() {
    static REAPER: OnceLock<ShimReaper> = OnceLock::new();
    extern "C" fn at_exit() {
        let report = REAPER.get().unwrap().shutdown_sync();
        println!(
            "drained {} still running {}",
            report.drained,
            report.still_running.len()
        );
    }
    let output = in_own_process_unchecked("shutdown_sync_works_from_an_atexit_handler", || {
        // SAFETY: the handler uses a static only.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
        block_on(async {
            let scene = Scene::new(ShimReaper::builder().pidfd(false)).await;
            REAPER.set(scene.fixture.reaper.clone()).unwrap();
            scene.running.start_kill().unwrap();
            eventually("the shim exits", || is_zombie(scene.running.id())).await;
            std::mem::forget(scene.children);
            // Exits inside a task, while the threads of the tokio runtime are alive.
            tokio::spawn(async { std::process::exit(11) })
                .await
                .unwrap();
        });
    });
    if let Some(output) = output {
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(11), "{printed}");
        assert!(printed.contains("drained 3 still running 0"), "{printed}");
    }
}

async fn the_exit_stream_ends_after_the_drained_exits(builder: ReaperBuilder) {
    let scene = Scene::new(builder).await;
    let stream = scene.fixture.reaper.exits();
    let mut child = exits_on_eof(9).spawn().unwrap();
    drop(child.stdin.take());
    let pid = child.id();
    drop(scene.fixture.reaper.register(pid).unwrap());
    eventually("the shim exits", || is_zombie(pid)).await;
    scene.fixture.reaper.shutdown().await;
    let exits: Vec<_> = stream.collect().await;
    assert!(
        exits
            .iter()
            .any(|exit| exit.pid == pid && exit.code() == Some(9))
    );
    assert_eq!(scene.fixture.reaper.exits().count().await, 0);
}
