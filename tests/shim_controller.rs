//! `ShimController` and `ShimHandler`, without a VMM runtime.

mod common;

use std::path::Path;
use std::time::Duration;

use common::boxes::shim_program;
use common::{eventually, is_gone};
use futures::poll;
use shim_reaper::ShimReaper;
use vmm_runtime::shim::{ShimController, ShimHandler, ShimProgram, SpawnedShim};
use vmm_runtime::{InstanceSpec, PayloadSpec, PidRecord, Ready};

fn controller(reaper: &ShimReaper) -> ShimController {
    let program = ShimProgram::at(shim_program()).unwrap();
    ShimController::new(reaper.clone(), program, Duration::from_secs(60))
}

fn spec(command: &[&str]) -> InstanceSpec {
    InstanceSpec::new("b1", PayloadSpec::command(command.iter().copied()))
}

fn record(dir: &Path) -> Option<PidRecord> {
    PidRecord::read(&dir.join("shim.pid")).unwrap()
}

#[tokio::test]
async fn a_started_shim_can_be_followed_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let reaper = ShimReaper::start();
    let shim = controller(&reaper)
        .start(dir.path(), &spec(&["sleep", "1000"]))
        .await
        .unwrap();
    assert!(shim.is_running());
    assert_eq!(Some(shim.record()), record(dir.path()).as_ref());
    assert_eq!(reaper.registered(), [shim.pid()]);
    let exit = shim.stop(Duration::from_secs(60)).await.unwrap();
    assert_eq!(exit.code(), Some(143));
    assert_eq!(shim.wait().await.unwrap(), exit);
    assert_eq!(reaper.stats().reaped_total, 1);
}

#[tokio::test]
async fn dropping_the_future_of_a_start_kills_and_reaps_the_shim() {
    let dir = tempfile::tempdir().unwrap();
    let reaper = ShimReaper::start();
    let mut payload = PayloadSpec::command(["sh", "-c", "setsid sleep 1000 & wait"]);
    payload.ready = Ready::Notified;
    let mut spec = InstanceSpec::new("b1", payload);
    // A detached shim has no watchdog that would end it.
    spec.detached = true;
    let controller = controller(&reaper);
    let mut start = Box::pin(controller.start(dir.path(), &spec));
    // Once this file exists, the shim has read its spec.
    while !dir.path().join("payload.pid").exists() {
        assert!(poll!(start.as_mut()).is_pending());
        common::pause().await;
    }
    let pid = record(dir.path()).unwrap().pid;
    drop(start);
    eventually("the shim exits", || is_gone(pid)).await;
    eventually("the exit is counted", || reaper.stats().reaped_total == 1).await;
}

#[tokio::test]
async fn dropping_a_spawned_shim_kills_it_and_a_handler_does_not() {
    let reaper = ShimReaper::start();
    let program = ShimProgram::at(shim_program()).unwrap();
    let spec = spec(&["sleep", "1000"]);
    let dir = tempfile::tempdir().unwrap();
    let spawned = SpawnedShim::spawn(&reaper, &program, &spec, dir.path());
    let pid = spawned.await.unwrap().handle().id();
    eventually("the shim exits", || is_gone(pid)).await;

    let mut spawned = SpawnedShim::spawn(&reaper, &program, &spec, dir.path())
        .await
        .unwrap();
    spawned.send_spec(&spec).await.unwrap();
    spawned.ready().await.unwrap();
    let handler = ShimHandler::from_spawned(spawned);
    assert!(handler.payload_pid().is_some());
    handler.release_watchdog();
    assert_eq!(handler.wait().await.unwrap().code(), Some(143));
}

#[tokio::test]
async fn attaching_by_pid_observes_and_does_not_reap() {
    let dir = tempfile::tempdir().unwrap();
    let first = ShimReaper::start();
    let shim = controller(&first)
        .start(dir.path(), &spec(&["sleep", "1000"]))
        .await
        .unwrap();
    let second = ShimReaper::start();
    let record = record(dir.path()).unwrap();
    let again = ShimHandler::from_pid(&second, &record)
        .await
        .unwrap()
        .unwrap();
    again.kill().await.unwrap();
    shim.wait().await.unwrap();
    assert_eq!(
        (first.stats().reaped_total, second.stats().reaped_total),
        (1, 0)
    );
    eventually("the exit counts as vanished", || {
        second.stats().vanished_total == 1
    })
    .await;
    assert!(
        ShimHandler::from_pid(&second, &record)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_record_of_another_process_is_rejected() {
    let reaper = ShimReaper::start();
    let mut children = common::KillOnDrop::default();
    let mine = children.spawn(common::sleeper()).unwrap();
    let other = children.spawn(common::sleeper()).unwrap();
    let record = PidRecord {
        pid: mine,
        ..PidRecord::of(other).unwrap().unwrap()
    };
    assert!(
        ShimHandler::from_pid(&reaper, &record)
            .await
            .unwrap()
            .is_none()
    );
    let true_record = PidRecord::of(mine).unwrap().unwrap();
    assert!(
        ShimHandler::from_pid(&reaper, &true_record)
            .await
            .unwrap()
            .is_some()
    );
}
