//! What a runtime does when less than its reserve is free on the disk.

mod common;

use std::process::Command;

use common::boxes::{open_runtime, options, remove_all, sleeping, start_box};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, RuntimeError, VmmRuntime};

/// The space that a test leaves to other programs, which use the same disk.
const MARGIN: u64 = 256 << 20;

fn free_bytes(home: &PerTestBoxHome) -> u64 {
    let out = Command::new("df")
        .args(["--block-size=1", "--output=avail"])
        .arg(home.path())
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().last().unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn boxes_keep_running_below_the_reserve_but_no_further_ones_start() {
    let home = PerTestBoxHome::new();
    let reserve = free_bytes(&home).saturating_sub(MARGIN);
    let open = options(home.path()).disk_reserve(reserve);
    let runtime = VmmRuntime::open(open).await.unwrap();
    let running = start_box(&runtime, sleeping()).await;
    let created = runtime.create(sleeping()).await.unwrap();
    let file = std::fs::File::create(home.path().join("large")).unwrap();
    let length = i64::try_from(2 * MARGIN).unwrap();
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length).unwrap();

    for refused in [
        runtime.create(sleeping()).await,
        runtime.start(&created.id).await,
    ] {
        assert!(
            matches!(refused, Err(RuntimeError::DiskFull { .. })),
            "{refused:?}"
        );
    }
    let again = runtime.start(&running.id).await.unwrap();
    assert_eq!(again.pid, running.pid);
    let stopped = runtime.stop(&running.id).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    runtime.remove(&running.id, false).await.unwrap();

    std::fs::remove_file(home.path().join("large")).unwrap();
    runtime.start(&created.id).await.unwrap();
    remove_all(&runtime).await;
}

#[tokio::test]
async fn a_runtime_opens_only_above_its_reserve() {
    let home = PerTestBoxHome::new();
    let refused = VmmRuntime::open(options(home.path()).disk_reserve(u64::MAX)).await;
    assert!(
        matches!(refused, Err(RuntimeError::DiskFull { .. })),
        "{refused:?}"
    );
    open_runtime(&home).await;
}
