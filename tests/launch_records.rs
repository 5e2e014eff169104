//! Runs whose launch is in `box.json`, without a trace of their shim.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::boxes::{
    box_dir, leave_running, open_runtime, remove_all, script, shim_pid_file, sleeping, start_box,
    wait_for_info,
};
use common::{DEADLINE, KillOnDrop, eventually, is_gone, is_zombie, kill, pause, sleeper};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::time::timeout;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxStatus, RestartPolicy, VmmRuntime};

/// Returns the record of a box, and its path.
fn read_record(home: &PerTestBoxHome, info: &BoxInfo) -> (Vec<u8>, PathBuf) {
    let path = box_dir(home, &info.id).join("box.json");
    (fs::read(&path).unwrap(), path)
}

/// Leaves of a box only this record.
fn leave_only_record(path: &Path, record: &[u8]) {
    let dir = path.parent().unwrap();
    fs::remove_dir_all(dir).unwrap();
    fs::create_dir(dir).unwrap();
    fs::write(path, record).unwrap();
}

async fn wait_for_removal(runtime: &VmmRuntime, id: &str) {
    let removed = async {
        while runtime.info(id).await.is_ok() {
            pause().await;
        }
    };
    timeout(DEADLINE, removed).await.expect("still exists");
}

#[tokio::test]
async fn a_launch_without_a_shim_is_not_a_run_unless_the_host_has_rebooted() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let once = RestartPolicy::OnFailure { max: Some(1) };
    let first_fails =
        "[ -e $VMM_BOX_DIR/runs ] && exec sleep 1000; echo > $VMM_BOX_DIR/runs; exit 7";
    let restarted = start_box(&runtime, script(first_fails).restart(once)).await;
    let is_restarted = |info: &BoxInfo| info.status == BoxStatus::Running && info.restarts == 1;
    wait_for_info(&runtime, &restarted.id, is_restarted).await;
    let new = start_box(&runtime, sleeping().auto_remove(true)).await;
    // As when the runtime dies before it spawns the shim.
    let records = [&restarted, &new].map(|bx| read_record(&home, bx));
    runtime.shutdown(DEADLINE).await;
    for (record, path) in &records {
        leave_only_record(path, record);
    }
    // Its payload has deleted all records of its run.
    let mut orphan = sleeper();
    orphan.env("VMM_BOX_DIR", box_dir(&home, &new.id));
    let mut children = KillOnDrop::default();
    let orphan = children.spawn(orphan).unwrap();

    let runtime = open_runtime(&home).await;
    let [_, (_, record_of_new)] = records;
    eventually("the launch is forgotten on disk", || {
        let saved = fs::read_to_string(&record_of_new).unwrap();
        !saved.contains("launched_in") && !saved.contains("cleanup_due")
    })
    .await;
    eventually("the orphan exits", || is_zombie(orphan) || is_gone(orphan)).await;
    let marker = box_dir(&home, &restarted.id).join("runs");
    eventually("the restart takes place", || marker.exists()).await;
    let is_over = |info: &BoxInfo| info.status == BoxStatus::Failed && !info.restarting;
    let ended = wait_for_info(&runtime, &restarted.id, is_over).await;
    assert_eq!((ended.exit_code, ended.restarts), (Some(7), 1));
    let new = runtime.info(&new.id).await.unwrap();
    assert_eq!(new.status, BoxStatus::Configured);
    remove_all(&runtime).await;
}

#[tokio::test]
async fn what_follows_a_run_also_follows_a_power_cut_that_leaves_no_record_of_its_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let restarted = start_box(
        &runtime,
        sleeping().restart(RestartPolicy::OnFailure { max: None }),
    )
    .await;
    let removed = start_box(&runtime, sleeping().auto_remove(true)).await;
    let new = runtime.create(sleeping().auto_remove(true)).await.unwrap();
    let records = [&restarted, &removed].map(|bx| read_record(&home, bx));
    runtime.shutdown(DEADLINE).await;
    for (record, path) in records {
        let mut record: Value = serde_json::from_slice(&record).unwrap();
        record["launched_in"] = "an earlier boot".into();
        leave_only_record(&path, record.to_string().as_bytes());
    }

    let runtime = open_runtime(&home).await;
    let is_restarted = |info: &BoxInfo| info.status == BoxStatus::Running && info.restarts == 1;
    wait_for_info(&runtime, &restarted.id, is_restarted).await;
    wait_for_removal(&runtime, &removed.id).await;
    let kept = runtime.info(&new.id).await.unwrap();
    assert_eq!(kept.status, BoxStatus::Configured);
    remove_all(&runtime).await;
}

#[tokio::test]
async fn what_follows_a_run_also_follows_one_whose_payload_has_deleted_the_record_of_its_shim() {
    let home = PerTestBoxHome::new();
    let on_failure = RestartPolicy::OnFailure { max: None };
    let restarted = leave_running(&home, sleeping().restart(on_failure)).await;
    let removed = leave_running(&home, sleeping().auto_remove(true)).await;
    for bx in [&restarted, &removed] {
        let shim = bx.pid.unwrap();
        fs::remove_file(shim_pid_file(&home, &bx.id)).unwrap();
        kill(shim, Signal::SIGKILL);
        eventually("the shim ends", || is_zombie(shim) || is_gone(shim)).await;
    }

    let runtime = open_runtime(&home).await;
    let is_restarted = |info: &BoxInfo| info.status == BoxStatus::Running && info.restarts == 1;
    wait_for_info(&runtime, &restarted.id, is_restarted).await;
    wait_for_removal(&runtime, &removed.id).await;
    remove_all(&runtime).await;
}
