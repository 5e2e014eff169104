//! The home for tests catches what a test leaves behind.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::boxes::{open, sleeping, started};
use common::{is_gone, own_process::block_on};
use vmm_runtime::testing::PerTestBoxHome;

/// What dropping it says, if it complains.
fn complaint(home: PerTestBoxHome) -> Option<String> {
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(home)));
    dropped
        .err()
        .map(|panic| panic.downcast_ref::<String>().unwrap().clone())
}

#[test]
fn a_live_shim_fails_the_test_and_is_named_and_killed() {
    let home = PerTestBoxHome::new();
    let running = block_on(async {
        let runtime = open(&home).await;
        started(&runtime, sleeping().detached(true)).await
    });
    let complaint = complaint(home).expect("a complaint");
    let pid = running.pid.unwrap();
    for part in [format!("pid {pid}"), "state S".into(), running.id] {
        assert!(complaint.contains(&part), "{complaint}");
    }
    common::eventually_blocking("it was killed", || is_gone(pid));
}

#[test]
fn a_zombie_fails_the_test_too() {
    let home = PerTestBoxHome::new();
    let dir = home.path().join("boxes").join("left");
    std::fs::create_dir_all(&dir).unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    let record = vmm_runtime::PidRecord::of(child.id()).unwrap().unwrap();
    record.write(&dir.join("shim.pid")).unwrap();
    child.kill().unwrap();
    common::eventually_blocking("a zombie", || common::is_zombie(child.id()));
    let complaint = complaint(home).expect("a complaint");
    let named = format!("pid {}, state Z (zombie), box left", child.id());
    assert!(complaint.contains(&named), "{complaint}");
    child.wait().unwrap();
}

/// Also one whose box, and with it its record, is gone.
#[test]
fn a_shim_whose_box_is_gone_from_the_disk_is_known_nevertheless() {
    let home = PerTestBoxHome::new();
    let running = block_on(async {
        let runtime = open(&home).await;
        let running = started(&runtime, sleeping().detached(true)).await;
        std::fs::remove_dir_all(common::boxes::dir_of(&home, &running.id)).unwrap();
        running
    });
    let complaint = complaint(home).expect("a complaint");
    assert!(complaint.contains(&format!("pid {}", running.pid.unwrap())));
}

#[test]
fn what_a_payload_has_left_behind_fails_the_test_as_well() {
    let home = PerTestBoxHome::new();
    let dir = home
        .path()
        .canonicalize()
        .unwrap()
        .join("boxes")
        .join("left");
    let mut child = std::process::Command::new("sleep")
        .arg("1000")
        .env("VMM_BOX_DIR", dir)
        .spawn()
        .unwrap();
    let complaint = complaint(home).expect("a complaint");
    let named = format!("pid {}, state S (sleeping), box left", child.id());
    assert!(complaint.contains(&named), "{complaint}");
    child.wait().unwrap();
}

#[test]
fn a_test_that_leaves_nothing_passes() {
    let home = PerTestBoxHome::new();
    let path = home.path().to_owned();
    block_on(async {
        let runtime = open(&home).await;
        let running = started(&runtime, sleeping()).await;
        runtime.remove(&running.id, true).await.unwrap();
        // One that is still ending because its runtime has let go of it counts as gone.
        started(&runtime, sleeping()).await;
    });
    assert_eq!(complaint(home), None);
    assert!(!path.exists());
}
