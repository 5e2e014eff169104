//! Disks whose contents survive the end of a guest.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxInfo, BoxSpec, Ending, FailureKind, Removal, VmmRuntime};
use vmm_shim::{Disk, DiskAccess};

use crate::common::{eventually, kill};
use crate::guest::{GuestFiles, console, open_runtime, spec};

const DISK_SIZE: usize = 16 << 20;

/// Returns a box that prints the beginning of its disk, changes it, and reports that it has.
async fn create(runtime: &VmmRuntime, files: &GuestFiles, then: &str) -> BoxInfo {
    let base = files.path("base");
    fs::write(&base, "base\n".repeat(1024)).unwrap();
    let mut guest = files.guest_with_agent();
    let disk = Disk::read_only(base).access(DiskAccess::Persistent);
    guest.disks.push(disk);
    let mut spec: BoxSpec = spec(&guest);
    let script = format!(
        "read line < /dev/vdb; echo \"read $line\"; echo changed > /dev/vdb; sync /dev/vdb; echo written; {then}"
    );
    spec.payload.command = ["sh", "-c", &script].map(str::to_owned).into();
    runtime.create(spec).await.unwrap()
}

async fn run(runtime: &VmmRuntime, bx: &BoxInfo) -> String {
    runtime.start(&bx.id).await.unwrap();
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!(ended.ending, Some(Ending::Exited { code: 0 }), "{ended:?}");
    console(&ended)
}

#[tokio::test]
async fn a_persistent_disk_keeps_what_the_guest_has_written_and_leaves_its_base_alone() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = create(&runtime, &files, "true").await;
    let first = run(&runtime, &bx).await;
    assert!(first.contains("read base"), "{first}");
    drop(runtime);
    let runtime = open_runtime(&home).await;
    let second = run(&runtime, &bx).await;
    assert!(second.contains("read changed"), "{second}");
    let base = fs::read_to_string(files.path("base")).unwrap();
    assert!(base.starts_with("base\n"));

    // As a rebuilt image does.
    fs::write(files.path("rebuilt"), &base).unwrap();
    fs::rename(files.path("rebuilt"), files.path("base")).unwrap();
    runtime.start(&bx.id).await.unwrap_err();
    let failed = runtime.info(&bx.id).await.unwrap();
    let Some(Ending::Failed { kind, message, .. }) = failed.ending else {
        panic!("{failed:?}");
    };
    assert_eq!(kind, FailureKind::Storage);
    assert!(message.contains("has changed"), "{message}");
    runtime.remove(&bx.id, Removal::Ended).await.unwrap();
    assert!(!bx.dir.exists());
}

#[tokio::test]
async fn a_guest_that_ends_by_itself_writes_its_data_however_short_the_grace_period() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let disk = files.path("disk");
    fs::write(&disk, vec![0; DISK_SIZE]).unwrap();
    let mut guest = files.guest_with_agent();
    guest
        .disks
        .push(Disk::read_only(&disk).access(DiskAccess::ReadWrite));
    let mut spec = spec(&guest).stop_grace(Duration::from_millis(1));
    // The data is in the memory of the guest when the command ends.
    let script =
        format!("tr '\\0' x < /dev/zero | dd of=/dev/vdb bs={DISK_SIZE} count=1 iflag=fullblock");
    spec.payload.command = ["sh", "-c", &script].map(str::to_owned).into();
    let bx = runtime.create(spec).await.unwrap();
    run(&runtime, &bx).await;
    assert!(fs::read(&disk).unwrap() == vec![b'x'; DISK_SIZE]);
}

#[tokio::test]
async fn a_persistent_disk_can_be_used_after_its_shim_was_killed() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = create(&runtime, &files, "sleep 1000").await;
    let started = runtime.start(&bx.id).await.unwrap();
    eventually("the guest has written", || {
        console(&started).contains("written")
    })
    .await;
    kill(started.pid.unwrap(), Signal::SIGKILL);
    runtime.wait(&bx.id).await.unwrap();
    // The old QEMU has ended when the box is started again: it would have the lock of the disk.
    let restarted = runtime.start(&bx.id).await.unwrap();
    eventually("the guest reads what it has written", || {
        console(&restarted).contains("read changed")
    })
    .await;
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}
