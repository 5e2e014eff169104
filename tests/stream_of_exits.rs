//! The stream of exits has every exit that a handle has shown, also when the reaper shuts down.

mod common;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Wake, Waker};

use common::{Fixture, eventually, exits_on_eof, exits_with, is_zombie};
use futures::{FutureExt, StreamExt};
use shim_reaper::{Exits, ReaperBuilder, ShimReaper};
use tokio_util::sync::CancellationToken;

in_both_modes!(
    the_exit_is_in_the_stream_before_a_task_that_awaits_it_wakes,
    every_task_finds_the_exit_that_it_has_awaited,
);

/// Takes the next exit out of the stream when it is woken.
struct ReadsWhenWoken {
    exits: Mutex<Exits>,
    found: Mutex<Option<Option<u32>>>,
}

impl Wake for ReadsWhenWoken {
    fn wake(self: Arc<Self>) {
        let next = self.exits.lock().unwrap().next().now_or_never().flatten();
        *self.found.lock().unwrap() = Some(next.map(|exit| exit.pid));
    }
}

async fn the_exit_is_in_the_stream_before_a_task_that_awaits_it_wakes(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(std::time::Duration::from_millis(10)));
    let reads = Arc::new(ReadsWhenWoken {
        exits: Mutex::new(fixture.reaper.exits()),
        found: Mutex::new(None),
    });
    let mut child = exits_on_eof(3).spawn().unwrap();
    let lifeline = child.stdin.take();
    let mut handle = pin!(fixture.reaper.register_child(child).unwrap());
    let waker = Waker::from(Arc::clone(&reads));
    assert!(
        handle
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(lifeline);
    eventually("woken", || reads.found.lock().unwrap().is_some()).await;
    assert_eq!(*reads.found.lock().unwrap(), Some(Some(handle.pid())));
}

async fn every_task_finds_the_exit_that_it_has_awaited(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(std::time::Duration::from_millis(10)));
    let tasks: Vec<_> = (0..100)
        .map(|code| {
            let reaper = fixture.reaper.clone();
            tokio::spawn(async move {
                let mut exits = reaper.exits();
                let exit = reaper.spawn(exits_with(code)).await.unwrap().await.unwrap();
                loop {
                    let next = exits.next().now_or_never().flatten();
                    if next.expect("it is there").pid == exit.pid {
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

#[derive(Clone, Copy, Debug)]
enum Shutdown {
    Async,
    Sync,
    Token,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_right_after_the_last_exit_loses_none() {
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
        let handle = reaper.spawn(exits_with(code)).await.unwrap();
        expected.insert(handle.pid(), Some(code));
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
async fn a_dead_child_is_in_the_stream_or_given_back_when_registering_races_a_shutdown() {
    for _ in 0..100 {
        let reaper = ShimReaper::start();
        let exits = reaper.exits();
        let child = exits_with(5).spawn().unwrap();
        let pid = child.id();
        eventually("dead", || is_zombie(pid)).await;
        let both = Arc::new(Barrier::new(2));
        let registering = std::thread::spawn({
            let (reaper, both) = (reaper.clone(), Arc::clone(&both));
            move || {
                both.wait();
                reaper.register_child(child)
            }
        });
        both.wait();
        reaper.shutdown_sync();
        let read: Vec<_> = exits.map(|exit| exit.pid).collect().await;
        match registering.join().unwrap() {
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
async fn the_stream_ends_with_the_last_reaper_and_handle() {
    let reaper = ShimReaper::start();
    let exits = reaper.exits();
    let exit = reaper.spawn(exits_with(6)).await.unwrap().await.unwrap();
    drop(reaper);
    let read: Vec<_> = exits.map(|exit| exit.pid).collect().await;
    assert_eq!(read, [exit.pid]);
}
