//! A registration ends when its process has been reaped or has vanished, and for no other reason.
#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

mod common;

use std::time::Duration;

use common::{Fixture, KillOnDrop, eventually, is_gone, is_zombie, kill, sleeper};
use nix::sys::signal::Signal::SIGKILL;
use shim_reaper::{ReapedBy, ReaperBuilder};

in_both_modes!(
    register_is_idempotent_and_survives_prior_cleanup,
    live_pid_stays_registered_until_actual_exit,
    a_shim_without_handles_is_reaped,
    a_shim_of_a_dropped_reaper_is_reaped,
    registering_a_child_after_its_pid_keeps_one_entry,
);

async fn register_is_idempotent_and_survives_prior_cleanup(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(50)));
    let mut child = sleeper().spawn().unwrap();
    let pid = child.id();
    let first = fixture.reaper.register(pid).unwrap();
    let second = fixture.reaper.register(pid).unwrap();
    assert_eq!(fixture.reaper.registered(), [pid]);
    assert_eq!(fixture.reaper.stats().registered, 1);

    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(first.await.unwrap().pid, pid);
    assert_eq!(second.await.unwrap().pid, pid);
    fixture.expect(0, 1, 0).await;

    // A late registration resolves although the process is gone.
    let late = fixture.reaper.register(pid).unwrap();
    let exit = late.await.unwrap();
    assert_eq!((exit.status, exit.reaped_by), (None, ReapedBy::Owner));
    fixture.expect(0, 2, 0).await;
}

async fn live_pid_stays_registered_until_actual_exit(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(5)));
    let mut children = KillOnDrop::default();
    let pid = children.spawn(sleeper()).unwrap();
    drop(fixture.reaper.register(pid).unwrap());
    fixture.sweeps(20).await;
    assert_eq!(fixture.reaper.registered(), [pid]);
    fixture.expect(0, 0, 1).await;

    kill(pid, SIGKILL);
    fixture.expect(1, 0, 0).await;
    assert!(is_gone(pid));
    assert!(fixture.reaper.registered().is_empty());
}

async fn a_shim_without_handles_is_reaped(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let handle = fixture.reaper.spawn(sleeper()).unwrap();
    let pid = handle.id();
    let task = tokio::spawn(handle.clone());
    drop(handle);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(fixture.reaper.registered(), [pid]);

    kill(pid, SIGKILL);
    fixture.expect(1, 0, 0).await;
    assert!(is_gone(pid));
}

async fn a_shim_of_a_dropped_reaper_is_reaped(builder: ReaperBuilder) {
    let Fixture { reaper, sink, .. } = Fixture::new(builder);
    let handle = reaper.spawn(sleeper()).unwrap();
    let pid = handle.id();
    drop((reaper, handle));
    assert!(!is_zombie(pid));
    kill(pid, SIGKILL);
    eventually("the shim is reaped", || is_gone(pid)).await;
    eventually("the sink counts it", || {
        sink.reaped_total.load(std::sync::atomic::Ordering::Relaxed) == 1
    })
    .await;
}

async fn registering_a_child_after_its_pid_keeps_one_entry(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder.owner_grace(Duration::from_secs(3_600)));
    let child = sleeper().spawn().unwrap();
    let pid = child.id();
    let shared = fixture.reaper.register(pid).unwrap();
    let owned = fixture.reaper.register_child(child).unwrap();
    fixture.expect(0, 0, 1).await;

    kill(pid, SIGKILL);
    for handle in [shared, owned] {
        let exit = handle.await.unwrap();
        assert_eq!((exit.signal(), exit.reaped_by), (Some(9), ReapedBy::Reaper));
    }
    fixture.expect(1, 0, 0).await;
    assert!(is_gone(pid));
}
