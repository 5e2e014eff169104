//! A panic in the sweep, or the loss of its runtime, stops nothing for long.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use common::logged::Logged;
use common::own_process::{block_on, in_own_process};
use common::{
    DEADLINE, Fixture, as_pid, eventually, eventually_blocking, exits_on_eof, exits_with, is_gone,
    sleeper,
};
use futures::{FutureExt, StreamExt};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::wait::waitpid;
use shim_reaper::{ReaperBuilder, ShimHandle, ShimReaper, SpawnOptions};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

in_both_modes!(
    a_reaper_that_lost_its_runtime_goes_on_on_a_thread_of_its_own,
    a_shim_is_reaped_after_the_runtime_is_gone_without_any_call,
    a_cancelled_token_closes_a_reaper_that_lost_its_runtime,
);

/// Fail points belong to the whole process, and so does the count of errors logged.
#[test]
fn a_panic_anywhere_in_the_sweep_replaces_the_worker() {
    in_own_process("a_panic_anywhere_in_the_sweep_replaces_the_worker", || {
        let logged = Logged::everywhere();
        let mut deaths = 0;
        for point in ["work", "collect", "pass", "examine"] {
            for pidfd in [true, false] {
                block_on(survives_a_panic_at(point, pidfd));
                deaths += 1;
                assert_eq!(logged.errors(), deaths, "one error a death, at {point}");
            }
        }
    });
}

async fn survives_a_panic_at(point: &str, pidfd: bool) {
    let interval = Duration::from_millis(20);
    let fixture = Fixture::new(ShimReaper::builder().pidfd(pidfd).sweep_interval(interval));
    let mut handles = Vec::new();
    let mut lifelines = Vec::new();
    for _ in 0..20 {
        let mut child = exits_on_eof(5).spawn().unwrap();
        lifelines.push(child.stdin.take());
        handles.push(fixture.reaper.register_child(child).unwrap());
    }
    fixture.sweeps(1).await;

    fail::cfg(format!("shim_reaper::{point}"), "1*panic(injected)").unwrap();
    drop(lifelines);
    // Nobody registers anything: the worker comes back by itself.
    eventually("replaced", || fixture.reaper.stats().respawns_total == 1).await;
    for handle in handles {
        assert_eq!(handle.await.unwrap().code(), Some(5));
    }
    fixture.sweeps(3).await;
    fixture.expect(20, 0, 0).await;
    assert!(fixture.reaper.worker_alive());
    assert_eq!(fixture.reaper.stats().respawns_total, 1);
    fail::remove(format!("shim_reaper::{point}"));
    fixture.reaper.shutdown().await;
}

/// Nothing but its place in the queue would bring it back: the next sweep is an hour away.
#[test]
fn the_shim_whose_examination_panicked_is_examined_again() {
    in_own_process(
        "the_shim_whose_examination_panicked_is_examined_again",
        || {
            block_on(async {
                let interval = Duration::from_secs(3_600);
                let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
                eventually("swept", || fixture.reaper.stats().sweeps_completed == 1).await;
                // More than a few sweeps look at unasked.
                let options = SpawnOptions::new().kill_on_drop(true);
                let mut elders = Vec::new();
                for _ in 0..50 {
                    elders.push(fixture.reaper.spawn_with(sleeper(), options).await.unwrap());
                }
                fail::cfg("shim_reaper::examine", "100*off->1*panic(injected)").unwrap();
                let mut shims = Vec::new();
                for _ in 0..200 {
                    shims.push(fixture.reaper.spawn(exits_with(5)).await.unwrap());
                }
                let all = futures::future::join_all(shims);
                let exits = tokio::time::timeout(DEADLINE, all).await.unwrap();
                assert!(exits.iter().all(|exit| exit.unwrap().code() == Some(5)));
                assert_eq!(fixture.reaper.stats().respawns_total, 1);
            });
        },
    );
}

#[test]
fn repeated_panics_back_off_and_heal() {
    in_own_process("repeated_panics_back_off_and_heal", || {
        block_on(async {
            let interval = Duration::from_millis(50);
            let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
            let handle = fixture.reaper.spawn(exits_with(6)).await.unwrap();
            fail::cfg("shim_reaper::collect", "panic(injected)").unwrap();
            let start = Instant::now();
            eventually("many panics", || fixture.reaper.stats().respawns_total >= 5).await;
            // At once, then after 1, 2 and 4 intervals.
            assert!(start.elapsed() >= interval * 7, "they spin");
            fail::remove("shim_reaper::collect");
            assert_eq!(handle.await.unwrap().code(), Some(6));
            fixture.sweeps(2).await;
            let healed = fixture.reaper.stats();
            fixture.sweeps(5).await;
            assert_eq!(fixture.reaper.stats().respawns_total, healed.respawns_total);
        });
    });
}

#[test]
fn a_shutdown_between_panics_is_prompt_and_drains() {
    in_own_process("a_shutdown_between_panics_is_prompt_and_drains", || {
        block_on(async {
            let interval = Duration::from_secs(3_600);
            let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
            fail::cfg("shim_reaper::collect", "panic(injected)").unwrap();
            let handle = fixture.reaper.spawn(exits_with(6)).await.unwrap();
            eventually("panicked", || fixture.reaper.stats().respawns_total >= 1).await;
            eventually("dead", || common::is_zombie(handle.pid())).await;
            assert_eq!(fixture.reaper.shutdown().await.drained, 1);
            assert_eq!(handle.await.unwrap().code(), Some(6));
        });
    });
}

/// A reaper whose runtime is gone, with a shim that runs.
fn stranded(builder: ReaperBuilder) -> (Fixture, ShimHandle) {
    // A runtime cannot be dropped within another.
    std::thread::spawn(|| {
        block_on(async {
            let fixture = Fixture::new(builder);
            let handle = fixture.reaper.spawn(sleeper()).await.unwrap();
            assert!(fixture.reaper.worker_alive());
            (fixture, handle)
        })
    })
    .join()
    .unwrap()
}

async fn a_reaper_that_lost_its_runtime_goes_on_on_a_thread_of_its_own(builder: ReaperBuilder) {
    let (fixture, handle) = stranded(builder);
    let child = exits_with(3).spawn().unwrap();
    drop(fixture.reaper.register(child.id()).await.unwrap());
    let spawned = fixture.reaper.spawn(exits_with(4)).await.unwrap();
    assert!(fixture.reaper.worker_alive());
    handle.kill().unwrap();
    assert_eq!(handle.await.unwrap().signal(), Some(9));
    assert_eq!(spawned.await.unwrap().code(), Some(4));
    fixture.expect(3, 0, 0).await;
    assert_eq!(fixture.reaper.stats().respawns_total, 1);
}

async fn a_shim_is_reaped_after_the_runtime_is_gone_without_any_call(builder: ReaperBuilder) {
    let (fixture, handle) = stranded(builder);
    common::kill(handle.pid(), SIGKILL);
    eventually("reaped", || is_gone(handle.pid())).await;
    assert!(fixture.reaper.worker_alive());
    assert_eq!(handle.try_exit().and_then(|exit| exit.signal()), Some(9));
}

async fn a_cancelled_token_closes_a_reaper_that_lost_its_runtime(builder: ReaperBuilder) {
    let token = CancellationToken::new();
    let (fixture, handle) = stranded(builder.shutdown_token(token.clone()));
    let exits = fixture.reaper.exits();
    token.cancel();
    let ended = tokio::time::timeout(DEADLINE, exits.count()).await;
    assert_eq!(ended, Ok(0));
    eventually("closed", || !handle.is_running()).await;
    handle.kill().unwrap();
    waitpid(as_pid(handle.pid()), None).unwrap();
}

#[tokio::test]
async fn a_token_cancelled_together_with_the_runtime_closes_the_reaper() {
    for _ in 0..20 {
        let (fixture, handle) = std::thread::spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let token = CancellationToken::new();
            let opened = runtime.block_on(async {
                let fixture = Fixture::new(ShimReaper::builder().shutdown_token(token.clone()));
                let handle = fixture.reaper.spawn(sleeper()).await.unwrap();
                (fixture, handle)
            });
            // Its worker does not run any more when it is cancelled.
            token.cancel();
            opened
        })
        .join()
        .unwrap();
        // Nobody polls it.
        eventually("closed", || !handle.is_running()).await;
        assert!(fixture.reaper.registered().await.is_empty());
        handle.kill().unwrap();
        waitpid(as_pid(handle.pid()), None).unwrap();
    }
}

/// The caller's runtime may never be driven again, or have no drivers.
#[test]
fn the_callers_runtime_is_not_used_in_place_of_the_lost_one() {
    for second in [
        Builder::new_current_thread().enable_all().build().unwrap(),
        Builder::new_current_thread().enable_time().build().unwrap(),
        Builder::new_current_thread().build().unwrap(),
    ] {
        let first = Builder::new_current_thread().enable_all().build().unwrap();
        let (reaper, polled) = first.block_on(async {
            let reaper = ShimReaper::start();
            let polled = reaper.spawn(sleeper()).await.unwrap();
            (reaper, polled)
        });
        drop(first);
        let spawned = second.block_on(async {
            assert!(poll_once(&polled).is_none());
            reaper.spawn(exits_with(4)).await
        });
        let spawned = spawned.unwrap();
        // The second runtime exists, and nothing drives it.
        eventually_blocking("reaped", || !spawned.is_running());
        assert_eq!(spawned.try_exit().and_then(|exit| exit.code()), Some(4));
        polled.kill().unwrap();
        eventually_blocking("reaped", || is_gone(polled.pid()));
        assert!(reaper.worker_alive());
        assert_eq!(reaper.stats().respawns_total, 1);
        drop(second);
        let later = futures::executor::block_on(reaper.spawn(exits_with(5))).unwrap();
        assert_eq!(futures::executor::block_on(later).unwrap().code(), Some(5));
        assert_eq!(reaper.stats().respawns_total, 1);
    }
}

#[test]
fn an_abandoned_reaper_without_shims_starts_no_thread_when_its_runtime_goes() {
    in_own_process(
        "an_abandoned_reaper_without_shims_starts_no_thread_when_its_runtime_goes",
        || {
            let logged = Logged::everywhere();
            for _ in 0..20 {
                block_on(async {
                    let reaper = ShimReaper::start();
                    reaper.spawn(exits_with(3)).await.unwrap().await.unwrap();
                });
            }
            assert_eq!((logged.warnings(), logged.errors()), (0, 0));
        },
    );
}

/// The limit applies to the threads of a user, and not to root.
#[test]
fn without_threads_the_next_call_tries_again() {
    in_own_process("without_threads_the_next_call_tries_again", || {
        let logged = Logged::everywhere();
        // SAFETY: takes an integer; fails where this is not root, to whom no limit applies.
        let _ = unsafe { nix::libc::setuid(54_321) };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (reaper, handle) = runtime.block_on(async {
            let reaper = ShimReaper::start();
            let options = SpawnOptions::new().kill_on_drop(true);
            let handle = reaper.spawn_with(sleeper(), options).await.unwrap();
            (reaper, handle)
        });
        let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        setrlimit(Resource::RLIMIT_NPROC, 1, hard).unwrap();
        drop(runtime);
        assert!(!reaper.worker_alive());
        for _ in 0..10 {
            assert!(poll_once(&handle).is_none());
        }
        assert!(!reaper.worker_alive());
        assert_eq!(logged.errors(), 1, "logged once");
        setrlimit(Resource::RLIMIT_NPROC, soft, hard).unwrap();
        assert!(poll_once(&handle).is_none());
        assert!(reaper.worker_alive());
        handle.kill().unwrap();
        eventually_blocking("reaped", || is_gone(handle.pid()));
        assert_eq!(reaper.stats().respawns_total, 1);
    });
}

fn poll_once(handle: &ShimHandle) -> Option<i32> {
    let exit = handle.clone().now_or_never()?.unwrap();
    exit.signal()
}

/// Wakers belong to other executors, and may do anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waker_that_panics_keeps_no_other_task_waiting() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("injected");
        }
    }
    let fixture = Fixture::new(ShimReaper::builder());
    let mut child = exits_on_eof(5).spawn().unwrap();
    let lifeline = child.stdin.take();
    let handle = fixture.reaper.register_child(child).unwrap();
    let mut hostile = pin!(handle.clone());
    let waker = Waker::from(Arc::new(Panics));
    assert!(
        hostile
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    let waiting = tokio::spawn(tokio::time::timeout(DEADLINE, handle));
    drop(lifeline);
    assert_eq!(waiting.await.unwrap().unwrap().unwrap().code(), Some(5));
    assert_eq!(fixture.reaper.stats().respawns_total, 0);
}
