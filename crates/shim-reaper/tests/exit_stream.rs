//! The exit stream contains every exit that a handle returned, even when the reaper shuts down.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::zombie_processes
)]

mod common;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use common::{Fixture, eventually, exits_on_eof, exits_with, is_zombie};
use futures::{StreamExt, poll};
use shim_reaper::{Exits, ReaperBuilder, ShimReaper};
use tokio_util::sync::CancellationToken;

in_both_modes!(
    an_exit_is_in_the_stream_before_its_handle_wakes_a_task,
    a_task_that_awaited_a_handle_finds_its_exit_in_the_stream,
    a_full_stream_drops_the_oldest_exits_and_counts_them,
    a_stream_of_any_capacity_yields_the_newest_exit,
);

/// A waker that reads the next exit from the stream.
struct ReadOnWake {
    exits: Mutex<Exits>,
    found: Mutex<Option<Option<u32>>>,
}

impl Wake for ReadOnWake {
    fn wake(self: Arc<Self>) {
        let mut context = Context::from_waker(Waker::noop());
        let next = self.exits.lock().unwrap().poll_next_unpin(&mut context);
        *self.found.lock().unwrap() = Some(match next {
            Poll::Ready(Some(exit)) => Some(exit.pid),
            _ => None,
        });
    }
}

async fn an_exit_is_in_the_stream_before_its_handle_wakes_a_task(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(std::time::Duration::from_millis(10)));
    let reader = Arc::new(ReadOnWake {
        exits: Mutex::new(fixture.reaper.exits()),
        found: Mutex::new(None),
    });
    let mut child = exits_on_eof(3).spawn().unwrap();
    let stdin = child.stdin.take();
    let mut handle = pin!(fixture.reaper.register_child(child).unwrap());
    let waker = Waker::from(Arc::clone(&reader));
    assert!(
        handle
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(stdin);
    eventually("the handle wakes the task", || {
        reader.found.lock().unwrap().is_some()
    })
    .await;
    assert_eq!(*reader.found.lock().unwrap(), Some(Some(handle.id())));
}

async fn a_task_that_awaited_a_handle_finds_its_exit_in_the_stream(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(std::time::Duration::from_millis(10)));
    let tasks: Vec<_> = (0..100)
        .map(|code| {
            let reaper = fixture.reaper.clone();
            tokio::spawn(async move {
                let mut exits = reaper.exits();
                let exit = reaper.spawn(exits_with(code)).unwrap().await.unwrap();
                loop {
                    let Poll::Ready(Some(next)) = poll!(exits.next()) else {
                        panic!("the exit is in the stream");
                    };
                    if next.pid == exit.pid {
                        return;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn a_full_stream_drops_the_oldest_exits_and_counts_them(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let bounded = fixture.reaper.exits_bounded(2);
    let unbounded = fixture.reaper.exits();
    for code in 1..=5 {
        fixture
            .reaper
            .spawn(exits_with(code))
            .unwrap()
            .await
            .unwrap();
    }
    assert_eq!((bounded.dropped(), unbounded.dropped()), (3, 0));
    fixture.reaper.shutdown().await;
    assert_eq!(codes(bounded).await, [4, 5]);
    assert_eq!(codes(unbounded).await, [1, 2, 3, 4, 5]);
}

async fn a_stream_of_any_capacity_yields_the_newest_exit(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let streams = [0, 1, usize::MAX].map(|capacity| fixture.reaper.exits_bounded(capacity));
    for code in 1..=2 {
        fixture
            .reaper
            .spawn(exits_with(code))
            .unwrap()
            .await
            .unwrap();
    }
    fixture.reaper.shutdown().await;
    let [none, one, all] = streams;
    assert_eq!([none.dropped(), one.dropped(), all.dropped()], [1, 1, 0]);
    assert_eq!(codes(none).await, [2]);
    assert_eq!(codes(one).await, [2]);
    assert_eq!(codes(all).await, [1, 2]);
}

async fn codes(exits: Exits) -> Vec<i32> {
    exits.filter_map(async |exit| exit.code()).collect().await
}

#[derive(Clone, Copy, Debug)]
enum Shutdown {
    Async,
    Sync,
    Token,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_after_the_last_exit_loses_no_exit() {
    for dedicated in [false, true] {
        for shutdown in [Shutdown::Async, Shutdown::Sync, Shutdown::Token] {
            for _ in 0..60 {
                await_all_then_shut_down(dedicated, shutdown).await;
            }
        }
    }
}

async fn await_all_then_shut_down(dedicated: bool, shutdown: Shutdown) {
    let token = CancellationToken::new();
    let builder = ShimReaper::builder().shutdown_token(token.clone());
    let reaper = if dedicated {
        builder.start_dedicated().unwrap()
    } else {
        builder.start()
    };
    let exits = reaper.exits();
    let mut handles = Vec::new();
    let mut expected = BTreeMap::new();
    for code in 1..4 {
        let handle = reaper.spawn(exits_with(code)).unwrap();
        expected.insert(handle.id(), Some(code));
        handles.push(handle);
    }
    for handle in handles {
        handle.await.unwrap();
    }
    match shutdown {
        Shutdown::Async => drop(reaper.shutdown().await),
        Shutdown::Sync => drop(reaper.shutdown_sync()),
        Shutdown::Token => token.cancel(),
    }
    let read: BTreeMap<_, _> = exits.map(|exit| (exit.pid, exit.code())).collect().await;
    assert_eq!(read, expected, "dedicated: {dedicated}, {shutdown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_that_races_a_shutdown_is_streamed_or_returned() {
    for _ in 0..100 {
        let reaper = ShimReaper::start();
        let exits = reaper.exits();
        let child = exits_with(5).spawn().unwrap();
        let pid = child.id();
        eventually("the child exits", || is_zombie(pid)).await;
        let barrier = Arc::new(Barrier::new(2));
        let thread = std::thread::spawn({
            let (reaper, barrier) = (reaper.clone(), Arc::clone(&barrier));
            move || {
                barrier.wait();
                reaper.register_child(child)
            }
        });
        barrier.wait();
        reaper.shutdown_sync();
        let read: Vec<_> = exits.map(|exit| exit.pid).collect().await;
        match thread.join().unwrap() {
            Ok(handle) => {
                assert_eq!(handle.await.unwrap().code(), Some(5));
                assert_eq!(read, [pid]);
            }
            Err(error) => {
                let status = error.into_child().unwrap().wait().unwrap();
                assert_eq!(status.code(), Some(5));
                assert!(read.is_empty());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_stream_ends_with_the_last_reaper_and_handle() {
    let reaper = ShimReaper::start();
    let exits = reaper.exits();
    let exit = reaper.spawn(exits_with(6)).unwrap().await.unwrap();
    drop(reaper);
    let read: Vec<_> = exits.map(|exit| exit.pid).collect().await;
    assert_eq!(read, [exit.pid]);
}
