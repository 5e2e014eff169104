//! A reaper whose tokio runtime is gone continues on a thread of its own. A forked child that drops its
//! copy of the tokio runtime does not disturb the reaper.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::zombie_processes,
    unsafe_code
)]

mod common;

use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::forks::fork_child;
use common::log_counter::LogCounter;
use common::own_process::{block_on, in_own_process};
use common::{
    DEADLINE, Fixture, as_pid, eventually, eventually_blocking, exits_on_eof, exits_with, is_gone,
    sleeper,
};
use futures::StreamExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{ReaperBuilder, ReaperClosed, ShimExit, ShimHandle, ShimReaper, SpawnOptions};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;

in_both_modes!(
    a_reaper_without_its_tokio_runtime_continues_on_a_thread,
    a_reaper_without_its_tokio_runtime_reaps_without_any_call,
    a_cancelled_token_closes_a_reaper_without_its_tokio_runtime,
);

/// Returns a reaper whose tokio runtime is gone, with a running shim.
fn without_tokio_runtime(builder: ReaperBuilder) -> (Fixture, ShimHandle) {
    // A tokio runtime cannot be dropped inside another one.
    std::thread::spawn(|| {
        block_on(async {
            let fixture = Fixture::new(builder);
            let handle = fixture.reaper.spawn(sleeper()).unwrap();
            assert!(fixture.reaper.worker_alive());
            (fixture, handle)
        })
    })
    .join()
    .unwrap()
}

async fn a_reaper_without_its_tokio_runtime_continues_on_a_thread(builder: ReaperBuilder) {
    let (fixture, handle) = without_tokio_runtime(builder);
    let child = exits_with(3).spawn().unwrap();
    drop(fixture.reaper.register(child.id()).unwrap());
    let spawned = fixture.reaper.spawn(exits_with(4)).unwrap();
    assert!(fixture.reaper.worker_alive());
    handle.start_kill().unwrap();
    assert_eq!(handle.await.unwrap().signal(), Some(9));
    assert_eq!(spawned.await.unwrap().code(), Some(4));
    fixture.expect(3, 0, 0).await;
    assert_eq!(fixture.reaper.stats().respawns_total, 1);
}

async fn a_reaper_without_its_tokio_runtime_reaps_without_any_call(builder: ReaperBuilder) {
    let (fixture, handle) = without_tokio_runtime(builder);
    common::kill(handle.id(), SIGKILL);
    eventually("the shim is reaped", || is_gone(handle.id())).await;
    assert!(fixture.reaper.worker_alive());
    // The zombie is gone a moment before the handle resolves.
    eventually("the handle resolves", || !handle.is_running()).await;
    assert_eq!(
        handle.try_wait().unwrap().and_then(|exit| exit.signal()),
        Some(9)
    );
}

async fn a_cancelled_token_closes_a_reaper_without_its_tokio_runtime(builder: ReaperBuilder) {
    let token = CancellationToken::new();
    let (fixture, handle) = without_tokio_runtime(builder.shutdown_token(token.clone()));
    let exits = fixture.reaper.exits();
    token.cancel();
    let count = tokio::time::timeout(DEADLINE, exits.count()).await;
    assert_eq!(count, Ok(0));
    // A clone each time, because a handle that was polled would be woken.
    eventually("the reaper closes", || poll_once(&handle).is_ready()).await;
    handle.start_kill().unwrap();
    waitpid(as_pid(handle.id()), None).unwrap();
}

#[tokio::test]
async fn a_token_cancelled_together_with_the_tokio_runtime_closes_the_reaper() {
    for _ in 0..20 {
        let (fixture, handle) = std::thread::spawn(|| {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let token = CancellationToken::new();
            let pair = runtime.block_on(async {
                let fixture = Fixture::new(ShimReaper::builder().shutdown_token(token.clone()));
                let handle = fixture.reaper.spawn(sleeper()).unwrap();
                (fixture, handle)
            });
            // The worker no longer runs when the token is cancelled.
            token.cancel();
            pair
        })
        .join()
        .unwrap();
        // No task polls the handle.
        while !fixture.reaper.registered().is_empty() {
            common::pause().await;
        }
        assert_eq!(handle.clone().await.unwrap_err(), ReaperClosed);
        handle.start_kill().unwrap();
        waitpid(as_pid(handle.id()), None).unwrap();
    }
}

/// The tokio runtime of the caller may never run again, or may lack drivers.
#[test]
fn the_callers_tokio_runtime_does_not_replace_the_lost_one() {
    for second in [
        Builder::new_current_thread().enable_all().build().unwrap(),
        Builder::new_current_thread().enable_time().build().unwrap(),
        Builder::new_current_thread().build().unwrap(),
    ] {
        let first = Builder::new_current_thread().enable_all().build().unwrap();
        let (reaper, old) = first.block_on(async {
            let reaper = ShimReaper::start();
            let old = reaper.spawn(sleeper()).unwrap();
            (reaper, old)
        });
        drop(first);
        let spawned = second.block_on(async {
            assert!(poll_once(&old).is_pending());
            reaper.spawn(exits_with(4))
        });
        let spawned = spawned.unwrap();
        // The second tokio runtime exists, but no thread runs it.
        eventually_blocking("the shim is reaped", || !spawned.is_running());
        assert_eq!(
            spawned.try_wait().unwrap().and_then(|exit| exit.code()),
            Some(4)
        );
        old.start_kill().unwrap();
        eventually_blocking("the shim is reaped", || is_gone(old.id()));
        assert!(reaper.worker_alive());
        assert_eq!(reaper.stats().respawns_total, 1);
        drop(second);
        let later = reaper.spawn(exits_with(5)).unwrap();
        assert_eq!(futures::executor::block_on(later).unwrap().code(), Some(5));
        assert_eq!(reaper.stats().respawns_total, 1);
    }
}

/// The child shares the epoll of tokio.
#[test]
fn a_forked_child_that_drops_its_copy_of_the_tokio_runtime_loses_no_event() {
    in_own_process(
        "a_forked_child_that_drops_its_copy_of_the_tokio_runtime_loses_no_event",
        reaps_after_a_forked_child_drops_its_copy,
    );
}

fn reaps_after_a_forked_child_drops_its_copy() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut runtime = ManuallyDrop::new(runtime);
    // No sweep finds the exits.
    let interval = Duration::from_secs(3_600);
    let builder = ShimReaper::builder().sweep_interval(interval);
    let (fixture, stdin, handle) = runtime.block_on(async {
        let fixture = Fixture::new(builder);
        // The worker runs.
        fixture.reaper.spawn(exits_with(4)).unwrap().await.unwrap();
        let mut child = exits_on_eof(5).spawn().unwrap();
        let stdin = child.stdin.take();
        let handle = fixture.reaper.register_child(child).unwrap();
        (fixture, stdin, handle)
    });
    let child = fork_child(|| {
        // SAFETY: drops the copy of the child, which does not use it again.
        unsafe { ManuallyDrop::drop(&mut runtime) };
        let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        // SAFETY: ends the child.
        unsafe { nix::libc::_exit(i32::from(threads != 1)) };
    });
    let status = waitpid(as_pid(child), None).unwrap();
    assert_eq!(
        status,
        WaitStatus::Exited(as_pid(child), 0),
        "the child starts no thread"
    );
    drop(stdin);
    runtime.block_on(async {
        let exit = tokio::time::timeout(DEADLINE, handle).await.unwrap();
        assert_eq!(exit.unwrap().code(), Some(5));
        assert_eq!(fixture.reaper.stats().respawns_total, 0);
        let exit = fixture.reaper.spawn(exits_with(6)).unwrap().await;
        assert_eq!(exit.unwrap().code(), Some(6));
    });
    drop(ManuallyDrop::into_inner(runtime));
}

#[test]
fn a_dropped_reaper_without_shims_starts_no_thread() {
    in_own_process("a_dropped_reaper_without_shims_starts_no_thread", || {
        let log = LogCounter::install();
        for _ in 0..20 {
            block_on(async {
                let reaper = ShimReaper::start();
                reaper.spawn(exits_with(3)).unwrap().await.unwrap();
            });
        }
        assert_eq!((log.warnings(), log.errors()), (0, 0));
    });
}

/// A reaper in a static is idle when its program ends.
#[test]
fn only_the_next_call_starts_the_thread_of_an_idle_reaper() {
    in_own_process(
        "only_the_next_call_starts_the_thread_of_an_idle_reaper",
        || {
            let log = LogCounter::install();
            let token = CancellationToken::new();
            let reaper = block_on(async {
                let builder = ShimReaper::builder().shutdown_token(token.clone());
                let reaper = builder.start();
                reaper.spawn(exits_with(3)).unwrap().await.unwrap();
                reaper
            });
            assert_eq!((log.warnings(), log.errors()), (0, 0));
            assert_eq!(reaper.stats().respawns_total, 0);

            let child = exits_with(4).spawn().unwrap();
            let handle = reaper.register_child(child).unwrap();
            eventually_blocking("the shim is reaped", || is_gone(handle.id()));
            assert_eq!(reaper.stats().respawns_total, 1);
        },
    );
}

#[test]
fn a_cancelled_token_ends_a_stream_of_an_idle_reaper_without_its_tokio_runtime() {
    for subscribe_first in [true, false] {
        let token = CancellationToken::new();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let builder = ShimReaper::builder().shutdown_token(token.clone());
        let reaper = builder.start_on(runtime.handle());
        let early = subscribe_first.then(|| reaper.exits());
        drop(runtime);
        let exits = early.unwrap_or_else(|| reaper.exits());
        token.cancel();
        let count = block_on(async { tokio::time::timeout(DEADLINE, exits.count()).await });
        assert_eq!(count, Ok(0));
    }
}

/// RLIMIT_NPROC limits the threads of a user, except root.
#[test]
fn the_next_call_retries_when_no_thread_can_start() {
    in_own_process("the_next_call_retries_when_no_thread_can_start", || {
        let log = LogCounter::install();
        // SAFETY: takes an integer. It fails unless the test runs as root, which has no limit.
        let _ = unsafe { nix::libc::setuid(54_321) };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (reaper, handle) = runtime.block_on(async {
            let reaper = ShimReaper::start();
            let options = SpawnOptions::new().kill_on_drop(true);
            let handle = reaper.spawn_with(sleeper(), options).unwrap();
            (reaper, handle)
        });
        let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        setrlimit(Resource::RLIMIT_NPROC, 1, hard).unwrap();
        drop(runtime);
        assert!(!reaper.worker_alive());
        for _ in 0..10 {
            assert!(poll_once(&handle).is_pending());
        }
        assert!(!reaper.worker_alive());
        assert_eq!(log.errors(), 1, "the reaper logs the failure once");
        setrlimit(Resource::RLIMIT_NPROC, soft, hard).unwrap();
        assert!(poll_once(&handle).is_pending());
        assert!(reaper.worker_alive());
        handle.start_kill().unwrap();
        eventually_blocking("the shim is reaped", || is_gone(handle.id()));
        assert_eq!(reaper.stats().respawns_total, 1);
    });
}

fn poll_once(handle: &ShimHandle) -> Poll<Result<ShimExit, ReaperClosed>> {
    pin!(handle.clone()).poll(&mut Context::from_waker(Waker::noop()))
}
