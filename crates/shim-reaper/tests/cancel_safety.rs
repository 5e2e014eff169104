//! Every future of the public API can be dropped after any poll.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::{Fixture, eventually, exits_on_eof, is_gone, pause, sleeper};
use futures::{Stream, StreamExt};
use shim_reaper::{ReaperBuilder, ShimReaper};

/// Polls a future up to `polls` times, with a pause after each poll, and then drops it.
async fn drop_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        if let Poll::Ready(output) = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            return Some(output);
        }
        pause().await;
    }
    None
}

const MAX_POLLS: usize = 8;

in_both_modes!(
    a_handle_can_be_dropped_after_any_poll,
    stop_can_be_dropped_after_any_poll,
    wait_and_wait_timeout_can_be_dropped_after_any_poll,
    kill_can_be_dropped_after_any_poll,
    exits_can_be_dropped_after_any_poll,
    shutdown_can_be_dropped_after_any_poll,
);

async fn a_handle_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    for polls in 0..MAX_POLLS {
        let mut child = exits_on_eof(21).spawn().unwrap();
        let stdin = child.stdin.take();
        let handle = fixture.reaper.register_child(child).unwrap();
        assert!(drop_after(polls, handle.clone()).await.is_none());
        drop(stdin);
        // And while the child exits.
        let _ = drop_after(polls, handle.clone()).await;
        assert_eq!(handle.await.unwrap().code(), Some(21));
    }
    fixture.expect(MAX_POLLS as u64, 0, 0).await;
}

async fn stop_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    for polls in 0..MAX_POLLS {
        let handle = fixture.reaper.spawn(sleeper()).unwrap();
        let outcome = drop_after(polls, handle.stop(Duration::from_secs(3_600))).await;
        if polls == 0 {
            assert!(handle.is_running());
            handle.start_kill().unwrap();
        }
        let exit = handle.await.unwrap();
        assert_eq!(exit.signal(), Some(if polls == 0 { 9 } else { 15 }));
        if let Some(exit) = outcome {
            assert_eq!(exit.unwrap().signal(), Some(15));
        }
    }
    fixture.expect(MAX_POLLS as u64, 0, 0).await;
}

async fn wait_and_wait_timeout_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    for polls in 0..MAX_POLLS {
        let mut child = exits_on_eof(22).spawn().unwrap();
        let stdin = child.stdin.take();
        let handle = fixture.reaper.register_child(child).unwrap();
        let long = Duration::from_secs(3_600);
        assert!(drop_after(polls, handle.wait()).await.is_none());
        assert!(drop_after(polls, handle.wait_timeout(long)).await.is_none());
        drop(stdin);
        // And while the child exits.
        let _ = drop_after(polls, handle.wait()).await;
        let _ = drop_after(polls, handle.wait_timeout(long)).await;
        assert_eq!(handle.wait().await.unwrap().code(), Some(22));
    }
    fixture.expect(MAX_POLLS as u64, 0, 0).await;
}

async fn kill_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    for polls in 0..MAX_POLLS {
        let handle = fixture.reaper.spawn(sleeper()).unwrap();
        let outcome = drop_after(polls, handle.kill()).await;
        if polls == 0 {
            assert!(handle.is_running());
            handle.start_kill().unwrap();
        }
        assert_eq!(handle.await.unwrap().signal(), Some(9));
        if let Some(exit) = outcome {
            assert_eq!(exit.unwrap().signal(), Some(9));
        }
    }
    fixture.expect(MAX_POLLS as u64, 0, 0).await;
}

async fn exits_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let mut exits = fixture.reaper.exits();
    for polls in 0..MAX_POLLS {
        let handle = fixture.reaper.spawn(common::exits_with(8)).unwrap();
        let first_try = drop_after(polls, exits.next()).await.flatten();
        let exit = match first_try {
            Some(exit) => exit,
            None => exits.next().await.unwrap(),
        };
        assert_eq!((exit.pid, exit.code()), (handle.id(), Some(8)));
    }
    assert_eq!(exits.size_hint().0, 0);
    fixture.expect(MAX_POLLS as u64, 0, 0).await;
}

async fn shutdown_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    for polls in 1..MAX_POLLS {
        let fixture = Fixture::new(builder.clone());
        let mut child = exits_on_eof(4).spawn().unwrap();
        let pid = child.id();
        let stdin = child.stdin.take();
        let exited = fixture.reaper.register_child(child).unwrap();
        drop(stdin);
        let running = fixture.reaper.spawn(sleeper()).unwrap();
        eventually("the first child exits", || {
            common::is_zombie(pid) || is_gone(pid)
        })
        .await;

        drop(drop_after(polls, fixture.reaper.shutdown()).await);
        assert_eq!(exited.await.unwrap().code(), Some(4), "no status is lost");
        assert!(running.clone().await.is_err());
        assert_eq!(
            fixture.reaper.shutdown().await.still_running,
            [running.id()]
        );
        running.start_kill().unwrap();
        nix::sys::wait::waitpid(common::as_pid(running.id()), None).unwrap();
        assert!(is_gone(pid));
    }
}

struct NoWake;

impl Wake for NoWake {
    fn wake(self: Arc<Self>) {}
}

#[tokio::test]
async fn a_dropped_wait_keeps_no_waker() {
    let fixture = Fixture::new(ShimReaper::builder());
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    let owner = Arc::new(NoWake);
    let waker = Waker::from(Arc::clone(&owner));
    let is_kept = || Arc::strong_count(&owner) > 2;
    let mut cx = Context::from_waker(&waker);
    let mut wait = handle.wait();
    let mut clone = handle.clone();
    assert!(Pin::new(&mut wait).poll(&mut cx).is_pending());
    assert!(is_kept());
    drop(wait);
    assert!(!is_kept());
    assert!(Pin::new(&mut clone).poll(&mut cx).is_pending());
    assert!(is_kept());
    drop(clone);
    assert!(!is_kept());
    handle.kill().await.unwrap();
}
