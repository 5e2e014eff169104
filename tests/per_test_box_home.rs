//! `PerTestBoxHome` fails a test that leaves a process behind.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::boxes::{open_runtime, sleeping, start_box};
use common::{is_gone, own_process::block_on};
use vmm_runtime::Removal;
use vmm_runtime::testing::PerTestBoxHome;

/// Drops the home, and returns the message of its panic.
fn panic_of_drop(home: PerTestBoxHome) -> Option<String> {
    let result = catch_unwind(AssertUnwindSafe(|| drop(home)));
    result
        .err()
        .map(|panic| panic.downcast_ref::<String>().unwrap().clone())
}

#[test]
fn a_live_shim_fails_the_test_and_is_reported_and_killed() {
    let home = PerTestBoxHome::new();
    let running = block_on(async {
        let runtime = open_runtime(&home).await;
        start_box(&runtime, sleeping().detached(true)).await
    });
    let message = panic_of_drop(home).expect("the drop does not panic");
    let pid = running.pid.unwrap();
    for part in [format!("pid {pid}"), "state S".into(), running.id.into()] {
        assert!(message.contains(&part), "{message}");
    }
    common::eventually_blocking("the shim is killed", || is_gone(pid));
}

#[test]
fn a_zombie_fails_the_test() {
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
    common::eventually_blocking("the child exits", || common::is_zombie(child.id()));
    let message = panic_of_drop(home).expect("the drop does not panic");
    let named = format!("pid {}, state Z (zombie), box left", child.id());
    assert!(message.contains(&named), "{message}");
    child.wait().unwrap();
}

#[test]
fn a_live_shim_without_a_box_directory_fails_the_test() {
    let home = PerTestBoxHome::new();
    let running = block_on(async {
        let runtime = open_runtime(&home).await;
        let running = start_box(&runtime, sleeping().detached(true)).await;
        std::fs::remove_dir_all(common::boxes::box_dir(&home, &running.id)).unwrap();
        running
    });
    let message = panic_of_drop(home).expect("the drop does not panic");
    assert!(message.contains(&format!("pid {}", running.pid.unwrap())));
}

#[test]
fn a_process_left_by_a_payload_fails_the_test() {
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
    let message = panic_of_drop(home).expect("the drop does not panic");
    let named = format!("pid {}, state S (sleeping), box left", child.id());
    assert!(message.contains(&named), "{message}");
    child.wait().unwrap();
}

#[test]
fn a_test_that_leaves_no_process_passes() {
    let home = PerTestBoxHome::new();
    let path = home.path().to_owned();
    block_on(async {
        let runtime = open_runtime(&home).await;
        let bx = start_box(&runtime, sleeping()).await;
        runtime.remove(&bx.id, Removal::Force).await.unwrap();
        // A shim that ends because its VMM runtime was dropped does not count.
        start_box(&runtime, sleeping()).await;
    });
    assert_eq!(panic_of_drop(home), None);
    assert!(!path.exists());
}
