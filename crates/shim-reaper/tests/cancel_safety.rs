//! Every future of the public API can be dropped after any poll.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::own_process::{block_on, in_own_process};
use common::{Fixture, eventually, exits_on_eof, is_gone, kill, pause, sleeper};
use futures::{Stream, StreamExt};
use nix::sys::signal::Signal::SIGKILL;
use shim_reaper::{ReaperBuilder, ShimReaper, SpawnOptions};

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
    register_and_attach_can_be_dropped_after_any_poll,
    a_handle_can_be_dropped_after_any_poll,
    stop_can_be_dropped_after_any_poll,
    registered_can_be_dropped_after_any_poll,
    exits_can_be_dropped_after_any_poll,
    shutdown_can_be_dropped_after_any_poll,
);

/// Runs in a process of its own, so that every child of the process belongs to this test.
#[test]
fn spawn_can_be_dropped_after_any_poll() {
    in_own_process("spawn_can_be_dropped_after_any_poll", || {
        for pidfd in [true, false] {
            block_on(async {
                let fixture = Fixture::new(ShimReaper::builder().pidfd(pidfd));
                for polls in 0..MAX_POLLS {
                    let options = SpawnOptions::new().kill_on_drop(polls % 2 == 0);
                    drop(drop_after(polls, fixture.reaper.spawn(sleeper())).await);
                    drop(drop_after(polls, fixture.reaper.spawn_with(sleeper(), options)).await);
                }
                for pid in children() {
                    // A child whose handle killed it on drop may be gone by now.
                    let registered = fixture.reaper.registered().await.contains(&pid);
                    assert!(registered || is_gone(pid), "child {pid} is not registered");
                    let _ = nix::sys::signal::kill(common::as_pid(pid), SIGKILL);
                }
                eventually("no child is left", || children().is_empty()).await;
                eventually("no child is registered", || {
                    fixture.reaper.stats().registered == 0
                })
                .await;
                let stats = fixture.reaper.stats();
                assert_eq!(stats.reaped_total, 2 * (MAX_POLLS as u64 - 1));
            });
        }
    });
}

fn children() -> Vec<u32> {
    let me = std::process::id().to_string();
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name();
        let Ok(pid) = name.to_str().unwrap().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let rest = &stat[stat.rfind(')').unwrap() + 2..];
        if rest.split(' ').nth(1) == Some(&me) {
            children.push(pid);
        }
    }
    children
}

async fn register_and_attach_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    for polls in 1..MAX_POLLS {
        let child = sleeper().spawn().unwrap();
        let pid = child.id();
        drop(drop_after(polls, fixture.reaper.attach(pid)).await);
        assert_eq!(fixture.reaper.registered().await, [pid]);
        drop(drop_after(polls, fixture.reaper.register(pid)).await);
        assert_eq!(fixture.reaper.registered().await, [pid]);
        kill(pid, SIGKILL);
        eventually("the child is reaped", || is_gone(pid)).await;
        fixture.expect(polls as u64, 0, 0).await;
    }
    let mut child = sleeper().spawn().unwrap();
    drop(drop_after(0, fixture.reaper.register(child.id())).await);
    assert!(
        fixture.reaper.registered().await.is_empty(),
        "a future that was never polled does nothing"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

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
        let handle = fixture.reaper.spawn(sleeper()).await.unwrap();
        let outcome = drop_after(polls, handle.stop(Duration::from_secs(3_600))).await;
        if polls == 0 {
            assert!(handle.is_running());
            handle.kill().unwrap();
        }
        let exit = handle.await.unwrap();
        assert_eq!(exit.signal(), Some(if polls == 0 { 9 } else { 15 }));
        if let Some(exit) = outcome {
            assert_eq!(exit.unwrap().signal(), Some(15));
        }
    }
    fixture.expect(MAX_POLLS as u64, 0, 0).await;
}

async fn registered_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(sleeper()).await.unwrap();
    for polls in 0..MAX_POLLS {
        drop(drop_after(polls, fixture.reaper.registered()).await);
        assert_eq!(fixture.reaper.registered().await, [handle.pid()]);
    }
    handle.kill().unwrap();
    fixture.expect(1, 0, 0).await;
}

async fn exits_can_be_dropped_after_any_poll(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(20)));
    let mut exits = fixture.reaper.exits();
    for polls in 0..MAX_POLLS {
        let handle = fixture.reaper.spawn(common::exits_with(8)).await.unwrap();
        let first_try = drop_after(polls, exits.next()).await.flatten();
        let exit = match first_try {
            Some(exit) => exit,
            None => exits.next().await.unwrap(),
        };
        assert_eq!((exit.pid, exit.code()), (handle.pid(), Some(8)));
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
        let running = fixture.reaper.spawn(sleeper()).await.unwrap();
        eventually("the first child exits", || {
            common::is_zombie(pid) || is_gone(pid)
        })
        .await;

        drop(drop_after(polls, fixture.reaper.shutdown()).await);
        assert_eq!(exited.await.unwrap().code(), Some(4), "no status is lost");
        assert!(running.clone().await.is_err());
        assert_eq!(
            fixture.reaper.shutdown().await.still_running,
            [running.pid()]
        );
        running.kill().unwrap();
        nix::sys::wait::waitpid(common::as_pid(running.pid()), None).unwrap();
        assert!(is_gone(pid));
    }
}
