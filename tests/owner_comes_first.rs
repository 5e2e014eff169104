//! Whoever holds the `Child` of a registered pid is left to wait for it first.

mod common;

use std::time::{Duration, Instant};

use common::{
    DEADLINE, Fixture, eventually, exits_on_eof, is_gone, is_waitable, is_zombie,
    kernel_is_at_least, sleeper,
};
use shim_reaper::{CollectedBy, ReaperBuilder, ShimReaper};

in_both_modes!(
    an_owner_that_waits_within_the_grace_gets_the_status_and_so_do_we,
    an_owner_that_never_waits_is_relieved_when_the_grace_ends,
    the_grace_is_one_sweep_interval_unless_set,
    a_child_given_away_is_collected_at_once,
    no_grace_means_at_once,
);

async fn an_owner_that_waits_within_the_grace_gets_the_status_and_so_do_we(builder: ReaperBuilder) {
    let fixture = Fixture::new(
        builder
            .sweep_interval(Duration::from_millis(10))
            .owner_grace(DEADLINE * 10),
    );
    let mut child = exits_on_eof(42).spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).await.unwrap();
    drop(child.stdin.take());

    // The handle knows at once, long before the owner cares.
    let exit = handle.await.unwrap();
    assert_eq!(
        (exit.code(), exit.collected_by),
        (Some(42), CollectedBy::Owner)
    );
    fixture.sweeps(10).await;
    assert!(is_zombie(child.id()), "left to its owner over many sweeps");
    fixture.expect(0, 0, 1).await;

    assert_eq!(child.wait().unwrap().code(), Some(42));
    fixture.expect(0, 1, 0).await;
}

/// Not even one sweep comes in between: the kernel says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owners_wait_ends_the_entry_without_a_sweep() {
    let endless = Duration::from_secs(1_000_000);
    let builder = ShimReaper::builder().sweep_interval(endless);
    let fixture = Fixture::new(builder.owner_grace(endless));
    let mut child = exits_on_eof(42).spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).await.unwrap();
    drop(child.stdin.take());
    assert_eq!(handle.await.unwrap().code(), Some(42));
    if !kernel_is_at_least(6, 9) {
        eprintln!("SKIPPED: this kernel does not report that a process was reaped");
        return;
    }
    assert_eq!(child.wait().unwrap().code(), Some(42));
    fixture.expect(0, 1, 0).await;
}

async fn an_owner_that_never_waits_is_relieved_when_the_grace_ends(builder: ReaperBuilder) {
    let grace = Duration::from_millis(300);
    let fixture = Fixture::new(
        builder
            .sweep_interval(Duration::from_millis(10))
            .owner_grace(grace),
    );
    let mut child = exits_on_eof(7).spawn().unwrap();
    let pid = child.id();
    let handle = fixture.reaper.register(pid).await.unwrap();
    let before_death = Instant::now();
    drop(child.stdin.take());

    assert_eq!(handle.await.unwrap().code(), Some(7));
    eventually("buried", || is_gone(pid)).await;
    assert!(
        before_death.elapsed() >= grace,
        "buried before the grace was over"
    );
    fixture.expect(1, 0, 0).await;
    assert!(!is_waitable(pid));
}

async fn the_grace_is_one_sweep_interval_unless_set(builder: ReaperBuilder) {
    let interval = Duration::from_millis(400);
    let fixture = Fixture::new(builder.sweep_interval(interval));
    let mut child = exits_on_eof(0).spawn().unwrap();
    let pid = child.id();
    drop(fixture.reaper.register(pid).await.unwrap());
    let before_death = Instant::now();
    drop(child.stdin.take());
    eventually("buried", || is_gone(pid)).await;
    assert!(before_death.elapsed() >= interval);
    fixture.expect(1, 0, 0).await;
}

async fn a_child_given_away_is_collected_at_once(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.owner_grace(DEADLINE * 10));
    let spawned = fixture.reaper.spawn(sleeper()).await.unwrap();
    let given = sleeper().spawn().unwrap();
    let given = fixture.reaper.register_child(given).unwrap();
    for handle in [spawned, given] {
        handle.kill().unwrap();
        let exit = handle.await.unwrap();
        assert_eq!(
            (exit.signal(), exit.collected_by),
            (Some(9), CollectedBy::Reaper)
        );
        assert!(is_gone(exit.pid));
    }
    fixture.expect(2, 0, 0).await;
}

async fn no_grace_means_at_once(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.owner_grace(Duration::ZERO));
    let mut child = exits_on_eof(9).spawn().unwrap();
    let handle = fixture.reaper.register(child.id()).await.unwrap();
    drop(child.stdin.take());
    let exit = handle.await.unwrap();
    assert_eq!(
        (exit.code(), exit.collected_by),
        (Some(9), CollectedBy::Reaper)
    );
    assert!(is_gone(child.id()));
}
