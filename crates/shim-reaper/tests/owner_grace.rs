//! The owner of a registered pid has a grace period to wait for it first.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::time::{Duration, Instant};

use common::{
    DEADLINE, Fixture, eventually, exits_on_eof, exits_with, is_gone, is_waitable, is_zombie,
    kernel_is_at_least, skip, sleeper, spawn_and_forget,
};
use shim_reaper::{ReapedBy, ReaperBuilder, ShimReaper};

in_both_modes!(
    an_owner_that_waits_in_time_gets_the_exit_code_and_so_does_the_handle,
    the_reaper_reaps_when_the_grace_period_of_the_owner_expires,
    the_default_grace_period_is_one_sweep_interval,
    a_child_that_the_reaper_owns_is_reaped_at_once,
    without_a_grace_period_the_reaper_reaps_at_once,
);

async fn an_owner_that_waits_in_time_gets_the_exit_code_and_so_does_the_handle(
    builder: ReaperBuilder,
) {
    let fixture = Fixture::new(
        builder
            .sweep_interval(Duration::from_millis(10))
            .owner_grace(DEADLINE * 10),
    );
    let mut child = exits_on_eof(42).spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).unwrap();
    drop(child.stdin.take());

    // The handle resolves at once, before the owner waits.
    let exit = handle.await.unwrap();
    assert_eq!((exit.code(), exit.reaped_by), (Some(42), ReapedBy::Owner));
    fixture.sweeps(10).await;
    assert!(
        is_zombie(child.id()),
        "the zombie stays for its owner over many sweeps"
    );
    fixture.expect(0, 0, 1).await;

    assert_eq!(child.wait().unwrap().code(), Some(42));
    fixture.expect(0, 1, 0).await;
}

/// The next sweep is 11 days away: the kernel reports the wait of the owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_by_the_owner_removes_the_entry_without_a_sweep() {
    let never = Duration::from_secs(1_000_000);
    let builder = ShimReaper::builder().sweep_interval(never);
    let fixture = Fixture::new(builder.owner_grace(never));
    let mut child = exits_on_eof(42).spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).unwrap();
    drop(child.stdin.take());
    assert_eq!(handle.await.unwrap().code(), Some(42));
    if !kernel_is_at_least(6, 9) {
        return skip("before Linux 6.9 the kernel does not report that a process was reaped");
    }
    assert_eq!(child.wait().unwrap().code(), Some(42));
    fixture.expect(0, 1, 0).await;
}

async fn the_reaper_reaps_when_the_grace_period_of_the_owner_expires(builder: ReaperBuilder) {
    let grace = Duration::from_millis(300);
    let fixture = Fixture::new(
        builder
            .sweep_interval(Duration::from_millis(10))
            .owner_grace(grace),
    );
    let mut child = exits_on_eof(7).spawn().unwrap();
    let pid = child.id();
    let handle = fixture.reaper.register(pid).unwrap();
    let before_exit = Instant::now();
    drop(child.stdin.take());

    assert_eq!(handle.await.unwrap().code(), Some(7));
    eventually("the zombie is reaped", || is_gone(pid)).await;
    assert!(
        before_exit.elapsed() >= grace,
        "the reaper reaped before the grace period expired"
    );
    fixture.expect(1, 0, 0).await;
    assert!(!is_waitable(pid));
}

async fn the_default_grace_period_is_one_sweep_interval(builder: ReaperBuilder) {
    let interval = Duration::from_millis(400);
    let fixture = Fixture::new(builder.sweep_interval(interval));
    let mut child = exits_on_eof(0).spawn().unwrap();
    let pid = child.id();
    drop(fixture.reaper.register(pid).unwrap());
    let before_exit = Instant::now();
    drop(child.stdin.take());
    eventually("the zombie is reaped", || is_gone(pid)).await;
    assert!(before_exit.elapsed() >= interval);
    fixture.expect(1, 0, 0).await;
}

async fn a_child_that_the_reaper_owns_is_reaped_at_once(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.owner_grace(DEADLINE * 10));
    let spawned = fixture.reaper.spawn(sleeper()).unwrap();
    let child = sleeper().spawn().unwrap();
    let registered = fixture.reaper.register_child(child).unwrap();
    for handle in [spawned, registered] {
        handle.start_kill().unwrap();
        let exit = handle.await.unwrap();
        assert_eq!((exit.signal(), exit.reaped_by), (Some(9), ReapedBy::Reaper));
        assert!(is_gone(exit.pid));
    }
    fixture.expect(2, 0, 0).await;
}

async fn without_a_grace_period_the_reaper_reaps_at_once(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.owner_grace(Duration::ZERO));
    let mut child = exits_on_eof(9).spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).unwrap();
    drop(child.stdin.take());
    let exit = handle.await.unwrap();
    assert_eq!((exit.code(), exit.reaped_by), (Some(9), ReapedBy::Reaper));
    assert!(is_gone(child.id()));
}

/// The worker, which sweeps again in an hour, does not get the event that the blocked thread takes.
#[test]
fn a_grace_period_that_a_blocked_thread_starts_ends_in_time() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let builder = ShimReaper::builder().sweep_interval(Duration::from_secs(3600));
        let fixture = Fixture::new(builder.owner_grace(Duration::from_millis(100)));
        eventually("the first sweep completes", || {
            fixture.reaper.stats().sweeps_completed > 0
        })
        .await;
        let pid = spawn_and_forget(exits_with(3));
        let handle = fixture.reaper.register(pid).unwrap();
        // Blocks the worker too.
        assert_eq!(handle.wait_blocking().unwrap().code(), Some(3));
        fixture.expect(1, 0, 0).await;
        assert!(is_gone(pid));
    });
}
