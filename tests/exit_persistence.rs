//! The ending of a box is on disk before the VMM runtime reports it, and survives a restart.

mod common;

use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use common::boxes::{
    box_dir, changes_up_to, open_runtime, orphan_of, script, sleeping, start_box, wait_for_info,
    wait_for_status,
};
use common::frozen_process::FrozenProcess;
use common::own_process::{block_on, exhaust_descriptors, in_own_process};
use common::{KillOnDrop, eventually, is_gone, is_zombie, kill, sleeper};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, Ending, Removal};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns a field of the `box.json` of a box.
fn record_field(home: &PerTestBoxHome, id: &str, field: &str) -> serde_json::Value {
    let text = fs::read(box_dir(home, id).join("box.json")).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    record[field].take()
}

/// Freezes a process. Returns `None`, after a note on stderr, on a host without the v1 freezer.
fn freeze(pid: u32) -> Option<FrozenProcess> {
    let frozen = FrozenProcess::freeze(pid);
    if let Err(error) = &frozen {
        let _ = writeln!(io::stderr(), "SKIPPED, in part: {error}");
    }
    frozen.ok()
}

#[tokio::test]
async fn an_ending_is_on_disk_before_its_event() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut events = runtime.events();
    for _ in 0..30 {
        let bx = start_box(&runtime, sleeping()).await;
        kill(bx.pid.unwrap(), Signal::SIGKILL);
        changes_up_to(&mut events, BoxChange::Failed).await;
        assert_eq!(record_field(&home, &bx.id, "last")["status"], "failed");
        runtime.remove(&bx.id, Removal::Force).await.unwrap();
    }
}

#[tokio::test]
async fn an_ending_is_on_disk_before_it_is_shown() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for round in 0..60 {
        let bx = start_box(&runtime, sleeping()).await;
        kill(bx.pid.unwrap(), Signal::SIGKILL);
        match round % 3 {
            0 => _ = runtime.wait(&bx.id).await.unwrap(),
            1 => _ = wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await,
            _ => loop {
                let list = runtime.list().await;
                if list.iter().all(|info| info.status == BoxStatus::Failed) {
                    break;
                }
            },
        }
        assert_eq!(
            record_field(&home, &bx.id, "last")["status"],
            "failed",
            "{round}"
        );
        runtime.remove(&bx.id, Removal::Force).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_start_is_on_disk_before_its_event() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut events = runtime.events();
    for _ in 0..20 {
        let spec = vmm_runtime::BoxSpec::new(["/no-such-program"]);
        let id = runtime.create(spec).await.unwrap().id;
        let start = tokio::spawn({
            let (runtime, id) = (runtime.clone(), id.clone());
            async move { runtime.start(&id).await }
        });
        changes_up_to(&mut events, BoxChange::Failed).await;
        assert_eq!(record_field(&home, &id, "last")["status"], "failed");
        start.await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn an_ending_survives_a_restart_during_its_cleanup() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let payload = bx.payload_pid.unwrap();
    let Some(frozen) = freeze(payload) else {
        return;
    };
    // The stop fails, because the frozen payload does not die.
    let _ = runtime.stop_within(&bx.id, Duration::ZERO).await;
    let ended = runtime.info(&bx.id).await.unwrap();
    assert_eq!(
        (ended.status, ended.exit_code),
        (BoxStatus::Stopped, Some(137))
    );
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!(
        (found.status, found.exit_code),
        (ended.status, ended.exit_code)
    );
    frozen.thaw();
    eventually("the payload exits", || is_gone(payload)).await;
}

#[tokio::test]
async fn the_next_runtime_resumes_a_cleanup() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let command = "cd $VMM_BOX_DIR; setsid sh -c 'echo $$ > orphan; exec sleep 1000' & wait";
    let bx = start_box(&runtime, script(command)).await;
    let orphan = orphan_of(&home, &bx.id).await;
    let Some(frozen) = freeze(orphan) else {
        return;
    };
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    assert_eq!(record_field(&home, &bx.id, "cleanup_due"), true);
    // An orphan that the first VMM runtime has not seen.
    let mut children = KillOnDrop::default();
    let mut other = sleeper();
    other.env("VMM_BOX_DIR", box_dir(&home, &bx.id));
    let other = children.spawn(other).unwrap();
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!(found.ending, Some(Ending::Signaled { signal: 9 }));
    eventually("the second orphan exits", || {
        is_zombie(other) || is_gone(other)
    })
    .await;
    frozen.thaw();
    eventually("the orphan exits", || is_gone(orphan)).await;
    eventually("the cleanup is done", || {
        record_field(&home, &bx.id, "cleanup_due").is_null()
    })
    .await;
    runtime.start(&bx.id).await.unwrap();
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_cleanup_waits_for_a_process_that_dies_slowly() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let command = "cd $VMM_BOX_DIR; setsid sh -c 'echo $$ > orphan; exec sleep 1000' & wait";
    let bx = start_box(&runtime, script(command)).await;
    let orphan = orphan_of(&home, &bx.id).await;
    let Some(frozen) = freeze(orphan) else {
        return;
    };
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let remove = tokio::spawn({
        let (runtime, id) = (runtime.clone(), bx.id.clone());
        async move { runtime.remove(&id, Removal::Force).await }
    });
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!remove.is_finished(), "a process of the box is running");
    frozen.thaw();
    remove.await.unwrap().unwrap();
    eventually("the orphan exits", || is_gone(orphan)).await;
}

#[tokio::test]
async fn a_shim_records_the_ending_of_a_payload_that_dies_slowly() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let Some(frozen) = freeze(bx.payload_pid.unwrap()) else {
        return;
    };
    let stop = tokio::spawn({
        let (runtime, id) = (runtime.clone(), bx.id.clone());
        async move { runtime.stop_within(&id, Duration::ZERO).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    frozen.thaw();
    stop.await.unwrap().unwrap();
    assert!(box_dir(&home, &bx.id).join("exit").exists());
}

#[test]
fn an_ending_is_not_saved_before_the_exit_record_can_be_read() {
    in_own_process(
        "an_ending_is_not_saved_before_the_exit_record_can_be_read",
        || block_on(payload_exits_without_descriptors()),
    );
}

async fn payload_exits_without_descriptors() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    // The shim records the signal, and exits with 128 + 15.
    kill(bx.payload_pid.unwrap(), Signal::SIGTERM);
    // Until the record is readable, the box shows the exit code of the shim.
    let shown = wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(shown.exit_code, Some(143));
    let by_sigterm = Some(Ending::Signaled { signal: 15 });
    let update = tokio::time::timeout(
        Duration::from_secs(20),
        wait_for_info(&runtime, &bx.id, |info| info.ending == by_sigterm),
    );
    update.await.unwrap();
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!(found.ending, by_sigterm);
}

#[test]
fn a_removal_that_lacked_descriptors_is_finished_by_the_next() {
    in_own_process(
        "a_removal_that_lacked_descriptors_is_finished_by_the_next",
        || block_on(removes_without_descriptors()),
    );
}

async fn removes_without_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 128, hard).unwrap();
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let ended = start_box(&runtime, script("exit 0")).await;
    runtime.wait(&ended.id).await.unwrap();
    let boxes = home.path().join("boxes");
    let taken = exhaust_descriptors();
    // It may fail before or after the directory is set aside, or not at all.
    let _ = runtime.remove(&ended.id, Removal::Force).await;
    drop(taken);
    let _ = runtime.remove(&ended.id, Removal::Force).await;
    eventually("the end of its files", || {
        fs::read_dir(&boxes).unwrap().count() == 0
    })
    .await;
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
}
