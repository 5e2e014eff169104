//! A VMM runtime recovers boxes whose files are invalid, missing, or written by an older version.

mod common;

use std::fs;
use std::time::Duration;

use common::boxes::{
    box_dir, exits_on_go, leave_running, open_runtime, remove_all, send_go, shim_pid_file, sleeping,
};
use common::{KillOnDrop, eventually, is_gone, kill, sleeper};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, PidRecord, Removal, RuntimeError};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_payload_record_of_another_process_is_ignored() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, sleeping()).await;
    let record = PidRecord {
        pid: std::process::id(),
        ..PidRecord::of(bx.pid.unwrap()).unwrap().unwrap()
    };
    record
        .write(&box_dir(&home, &bx.id).join("payload.pid"))
        .unwrap();
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!((found.pid, found.payload_pid), (bx.pid, None));
    remove_all(&runtime).await;
}

#[tokio::test]
async fn a_record_with_only_a_pid_is_verified_and_upgraded() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, sleeping()).await;
    let record = shim_pid_file(&home, &bx.id);
    fs::write(&record, bx.pid.unwrap().to_string()).unwrap();
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, bx.pid));
    let upgraded = PidRecord::read(&record).unwrap().unwrap();
    assert!(upgraded.identity.is_some());
    remove_all(&runtime).await;
}

#[tokio::test]
async fn a_record_with_only_the_pid_of_another_process_means_a_dead_shim() {
    let home = PerTestBoxHome::new();
    let other = leave_running(&home, sleeping()).await;
    let bx = leave_running(&home, sleeping()).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    eventually("the shim exits", || is_gone(bx.pid.unwrap())).await;
    let mut children = KillOnDrop::default();
    let other_process = children.spawn(sleeper()).unwrap();
    // An unrelated process, and the shim of another box.
    for pid in [other_process, other.pid.unwrap()] {
        fs::write(shim_pid_file(&home, &bx.id), pid.to_string()).unwrap();
        let runtime = open_runtime(&home).await;
        let info = runtime.info(&bx.id).await.unwrap();
        assert_eq!((info.status, info.pid), (BoxStatus::Failed, None));
        runtime.shutdown(SHUTDOWN_TIMEOUT).await;
        assert!(!is_gone(pid));
    }
    remove_all(&open_runtime(&home).await).await;
}

#[tokio::test]
async fn a_live_shim_is_found_without_a_valid_record() {
    for damage in [Some(""), Some("{\"pid\": 12"), Some("garbage"), None] {
        let home = PerTestBoxHome::new();
        let bx = leave_running(&home, sleeping()).await;
        let record = shim_pid_file(&home, &bx.id);
        match damage {
            Some(text) => fs::write(&record, text).unwrap(),
            None => fs::remove_file(&record).unwrap(),
        }
        let runtime = open_runtime(&home).await;
        let found = runtime.info(&bx.id).await.unwrap();
        assert_eq!((found.status, found.pid), (BoxStatus::Running, bx.pid));
        remove_all(&runtime).await;
        assert!(is_gone(bx.pid.unwrap()));
    }
}

/// A record of another process does not prove that the shim is dead.
#[tokio::test]
async fn a_live_shim_is_found_although_its_record_names_another_process() {
    for wrong in ["1", "{\"pid\":1,\"start_time\":1,\"boot_id\":\"x\"}"] {
        let home = PerTestBoxHome::new();
        let bx = leave_running(&home, sleeping()).await;
        fs::write(shim_pid_file(&home, &bx.id), wrong).unwrap();
        let runtime = open_runtime(&home).await;
        let found = runtime.info(&bx.id).await.unwrap();
        assert_eq!((found.status, found.pid), (BoxStatus::Running, bx.pid));
        assert!(!is_gone(bx.payload_pid.unwrap()));
        remove_all(&runtime).await;
    }
}

#[tokio::test]
async fn a_live_shim_of_a_damaged_box_outlives_the_next_runtime() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, sleeping()).await;
    fs::write(box_dir(&home, &bx.id).join("box.json"), "torn").unwrap();
    let report = open_runtime(&home).await.shutdown(SHUTDOWN_TIMEOUT).await;
    assert_eq!(report.left_running, std::slice::from_ref(&bx.id));
    assert!(!is_gone(bx.pid.unwrap()));
    remove_all(&open_runtime(&home).await).await;
}

#[tokio::test]
async fn an_invalid_record_of_a_dead_shim_is_reported_with_its_path() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, sleeping()).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    eventually("the shim exits", || is_gone(bx.pid.unwrap())).await;
    let record = shim_pid_file(&home, &bx.id);
    fs::write(&record, "garbage").unwrap();
    let runtime = open_runtime(&home).await;
    let info = runtime.info(&bx.id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Failed);
    let expected = format!("cannot read {}: it is not a pid record", record.display());
    assert_eq!(info.error.unwrap(), expected);
    assert_eq!(fs::read_to_string(&record).unwrap(), "garbage");
    // The box does not run, so it can start again.
    runtime.start(&bx.id).await.unwrap();
    remove_all(&runtime).await;
}

#[tokio::test]
async fn a_box_with_an_invalid_spec_is_failed_and_does_not_affect_others() {
    for text in ["", "{\"id\": \"x\"", "garbage", "[]"] {
        let home = PerTestBoxHome::new();
        let runtime = open_runtime(&home).await;
        let torn = runtime.create(sleeping().name("torn")).await.unwrap().id;
        let whole = runtime.create(sleeping().name("whole")).await.unwrap().id;
        runtime.shutdown(SHUTDOWN_TIMEOUT).await;
        let file = box_dir(&home, &torn).join("box.json");
        fs::write(&file, text).unwrap();

        let runtime = open_runtime(&home).await;
        let info = runtime.info(&torn).await.unwrap();
        assert_eq!(info.status, BoxStatus::Failed);
        let error = info.error.unwrap();
        let expected = format!("cannot read {}: malformed: ", file.display());
        assert!(error.starts_with(&expected), "{error}");
        match runtime.start(&torn).await {
            Err(error @ RuntimeError::Damaged { .. }) => {
                assert!(
                    error.to_string().contains(file.to_str().unwrap()),
                    "{error}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        runtime.start("whole").await.unwrap();
        runtime.remove(&torn, Removal::Ended).await.unwrap();
        assert_eq!(runtime.list().await.len(), 1);
        runtime.remove(&whole, Removal::Force).await.unwrap();
    }
}

#[tokio::test]
async fn a_live_shim_of_a_box_with_an_invalid_spec_can_be_stopped() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, sleeping()).await;
    let file = box_dir(&home, &bx.id).join("box.json");
    fs::write(&file, "torn").unwrap();
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, bx.pid));
    let stopped = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!(fs::read_to_string(&file).unwrap(), "torn");
}

#[tokio::test]
async fn an_invalid_exit_file_is_reported_and_the_box_can_start() {
    let home = PerTestBoxHome::new();
    let bx = leave_running(&home, exits_on_go(3)).await;
    send_go(&home, &bx.id);
    eventually("the shim exits", || is_gone(bx.pid.unwrap())).await;
    let file = box_dir(&home, &bx.id).join("exit");
    fs::write(&file, "{\"pid\"").unwrap();
    let runtime = open_runtime(&home).await;
    let info = runtime.info(&bx.id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Failed);
    assert!(info.error.unwrap().contains(file.to_str().unwrap()));
    fs::remove_file(box_dir(&home, &bx.id).join("go")).unwrap();
    runtime.start(&bx.id).await.unwrap();
    remove_all(&runtime).await;
}

#[tokio::test]
async fn partly_created_and_partly_removed_boxes_are_deleted() {
    let home = PerTestBoxHome::new();
    open_runtime(&home).await.shutdown(SHUTDOWN_TIMEOUT).await;
    let boxes = home.path().join("boxes");
    for name in [".creating-x", ".removing-y"] {
        fs::create_dir(boxes.join(name)).unwrap();
        fs::write(boxes.join(name).join("box.json"), "{").unwrap();
    }
    let runtime = open_runtime(&home).await;
    assert!(runtime.list().await.is_empty());
    assert_eq!(fs::read_dir(&boxes).unwrap().count(), 0);
}
