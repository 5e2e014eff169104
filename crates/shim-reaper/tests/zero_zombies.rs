//! Registered children leave no zombie although their `Child` was dropped.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use common::{Fixture, eventually, exits_with, is_gone, spawn_and_forget};
use shim_reaper::ReaperBuilder;

in_both_modes!(
    n_init_failures_leave_zero_zombies,
    a_thousand_init_failures_leave_zero_zombies
);

async fn n_init_failures_leave_zero_zombies(builder: ReaperBuilder) {
    init_failures(builder, 8).await;
}

async fn a_thousand_init_failures_leave_zero_zombies(builder: ReaperBuilder) {
    init_failures(builder, 1_000).await;
}

async fn init_failures(builder: ReaperBuilder, count: u64) {
    let fixture = Fixture::new(builder);
    let mut pids = Vec::new();
    for i in 0..count {
        let pid = spawn_and_forget(exits_with(i32::try_from(i % 100).unwrap()));
        drop(fixture.reaper.register(pid).unwrap());
        pids.push(pid);
    }
    fixture.expect(count, 0, 0).await;
    for pid in pids {
        eventually("the zombie is reaped", || is_gone(pid)).await;
    }
    assert!(fixture.reaper.registered().is_empty());
}
