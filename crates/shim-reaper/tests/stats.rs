//! The stats, the metrics sink and the exit stream count what happened.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::forks::{IdleChildren, exiting_child};
use common::{Fixture, KillOnDrop, allow_descriptors, eventually, exits_with, kill, sleeper};
use futures::StreamExt;
use nix::sys::signal::Signal::SIGKILL;
use shim_reaper::{ReaperBuilder, ShimReaper};

in_both_modes!(
    registered_rises_without_a_sweep,
    sweeps_continue_when_no_shim_exits,
    the_exit_stream_buffers_ten_thousand_exits,
    an_exit_stream_starts_when_it_is_created,
    a_run_with_owners_and_attached_processes_counts_no_foreign_wait,
    reapers_that_share_a_sink_add_to_it,
    without_pidfd_counts_the_shims_without_a_pidfd,
);

async fn registered_rises_without_a_sweep(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_secs(1_000_000)));
    eventually("the first sweep completes", || {
        fixture.reaper.stats().sweeps_completed == 1
    })
    .await;
    let mut handles = Vec::new();
    for i in 0..3 {
        handles.push(match i {
            0 => fixture.reaper.spawn(sleeper()).unwrap(),
            1 => fixture
                .reaper
                .register_child(sleeper().spawn().unwrap())
                .unwrap(),
            _ => fixture
                .reaper
                .register(sleeper().spawn().unwrap().id())
                .unwrap(),
        });
        assert_eq!(fixture.reaper.stats().registered, i + 1);
        assert_eq!(
            fixture
                .sink
                .registered_now
                .load(std::sync::atomic::Ordering::Relaxed),
            i + 1
        );
        assert_eq!(fixture.reaper.registered().len() as u64, i + 1);
    }
    assert_eq!(fixture.reaper.stats().sweeps_completed, 1);
    let mut pids: Vec<u32> = handles.iter().map(shim_reaper::ShimHandle::id).collect();
    pids.sort_unstable();
    assert_eq!(fixture.reaper.registered(), pids);
    for pid in &pids {
        kill(*pid, SIGKILL);
    }
    for pid in &pids {
        eventually("the child exits", || {
            common::is_zombie(*pid) || common::is_gone(*pid)
        })
        .await;
    }
    fixture.reaper.shutdown().await;
    fixture.expect(3, 0, 0).await;
}

async fn sweeps_continue_when_no_shim_exits(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(5)));
    eventually("the first sweep completes", || {
        fixture.reaper.stats().last_sweep_at.is_some()
    })
    .await;
    let first = fixture.reaper.stats();
    assert!(first.worker_alive);
    fixture.sweeps(20).await;
    let later = fixture.reaper.stats();
    assert!(later.sweeps_completed >= first.sweeps_completed + 20);
    let (first_at, later_at) = (first.last_sweep_at.unwrap(), later.last_sweep_at.unwrap());
    let elapsed = later_at.duration_since(first_at).unwrap();
    // Twenty intervals, half of which a late first sweep may use up.
    assert!(elapsed >= 20 * Duration::from_millis(5) / 2, "{elapsed:?}");
    assert!(later_at.elapsed().unwrap() < common::DEADLINE);
    assert_eq!((later.respawns_total, later.orphans_reaped_total), (0, 0));
}

async fn the_exit_stream_buffers_ten_thousand_exits(builder: ReaperBuilder) {
    const EXITS: u64 = 10_000;
    let fixture = Fixture::new(
        builder
            .owner_grace(Duration::ZERO)
            .sweep_interval(Duration::from_millis(20)),
    );
    let exits = fixture.reaper.exits();
    let mut expected = HashMap::new();
    for i in 0..EXITS {
        let code = i32::try_from(i % 256).unwrap();
        let handle = fixture.reaper.register(exiting_child(code)).unwrap();
        // The kernel may reuse a pid during this test: the last exit counts.
        expected.insert(handle.id(), code);
    }
    fixture.expect(EXITS, 0, 0).await;
    // The reader starts only now.
    let read: Vec<_> = exits.take(EXITS as usize).collect().await;
    assert_eq!(read.len() as u64, EXITS);
    let last: HashMap<_, _> = read
        .iter()
        .map(|exit| (exit.pid, exit.code().unwrap()))
        .collect();
    assert_eq!(last, expected);
}

async fn an_exit_stream_starts_when_it_is_created(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(10)));
    let run = async |code| {
        fixture
            .reaper
            .spawn(exits_with(code))
            .unwrap()
            .await
            .unwrap()
    };
    run(1).await;
    let first = fixture.reaper.exits();
    run(2).await;
    let second = fixture.reaper.exits();
    drop(fixture.reaper.exits());
    run(3).await;
    let codes = async |stream, count| -> Vec<Option<i32>> {
        let stream: shim_reaper::Exits = stream;
        stream.take(count).map(|exit| exit.code()).collect().await
    };
    assert_eq!(codes(first, 2).await, [Some(2), Some(3)]);
    assert_eq!(codes(second, 1).await, [Some(3)]);
}

async fn a_run_with_owners_and_attached_processes_counts_no_foreign_wait(builder: ReaperBuilder) {
    const EACH: u64 = 5;
    let fixture = Fixture::new(builder.owner_grace(common::DEADLINE));
    let mut owned = Vec::new();
    for _ in 0..EACH {
        owned.push(fixture.reaper.spawn(exits_with(0)).unwrap());
    }
    let mut children = KillOnDrop::default();
    for _ in 0..EACH {
        let registered = children.spawn(sleeper()).unwrap();
        drop(fixture.reaper.register(registered).unwrap());
    }
    let mut attached = KillOnDrop::default();
    for _ in 0..EACH {
        let pid = attached.spawn(sleeper()).unwrap();
        drop(fixture.reaper.attach(pid).unwrap());
    }
    // The owners wait at once.
    drop((children, attached));
    fixture.expect(EACH, 2 * EACH, 0).await;
    let stats = fixture.reaper.stats();
    assert_eq!(
        (stats.owner_reaped_total, stats.observed_total),
        (EACH, EACH)
    );
    assert_eq!((stats.foreign_waits_total, stats.unknown_total), (0, 0));
}

async fn reapers_that_share_a_sink_add_to_it(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let other = ShimReaper::builder()
        .metrics_sink(fixture.sink.clone())
        .start();
    let here = fixture.reaper.spawn(exits_with(0)).unwrap();
    let there = other.spawn(exits_with(0)).unwrap();
    here.await.unwrap();
    there.await.unwrap();
    assert_eq!(
        fixture
            .sink
            .reaped_total
            .load(std::sync::atomic::Ordering::Relaxed),
        2
    );
    assert_eq!(
        (
            fixture.reaper.stats().reaped_total,
            other.stats().reaped_total
        ),
        (1, 1)
    );
}

async fn without_pidfd_counts_the_shims_without_a_pidfd(builder: ReaperBuilder) {
    let pidfds = format!("{builder:?}").contains(" pidfd: true");
    allow_descriptors(1_000);
    let fixture = Fixture::new(builder.owner_grace(Duration::ZERO));
    let mut idle = IdleChildren::fork(100);
    for pid in &idle.0 {
        drop(fixture.reaper.register(*pid).unwrap());
    }
    let expected = if pidfds { 0 } else { 100 };
    assert_eq!(fixture.reaper.stats().without_pidfd, expected);
    idle.kill(100);
    fixture.expect(100, 0, 0).await;
    assert_eq!(fixture.reaper.stats().without_pidfd, 0);
}
