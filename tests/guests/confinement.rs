//! What QEMU, which a guest could take over, may do on the host.

use std::fs;

use vmm_runtime::testing::PerTestBoxHome;
use vmm_shim::{Disk, DiskAccess};

use crate::guest::{GuestFiles, console, open_runtime, run, spec, start_up};

#[tokio::test]
async fn qemu_has_a_seccomp_filter_and_gets_no_new_privileges() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(&runtime, spec(&files.guest("echo up; sleep 1000"))).await;
    let path = format!("/proc/{}/status", bx.payload_pid.unwrap());
    let status = fs::read_to_string(path).unwrap();
    let value = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.unwrap().split_whitespace().last().unwrap().to_owned()
    };
    assert_eq!(value("NoNewPrivs:"), "1");
    // SECCOMP_MODE_FILTER, proc_pid_status(5).
    assert_eq!(value("Seccomp:"), "2");
    runtime.remove(&bx.id, true).await.unwrap();
}

#[tokio::test]
async fn a_guest_has_no_network_device() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest(
        "mount -t sysfs sys /sys; grep -l ^0x02 /sys/bus/pci/devices/*/class || echo none; poweroff -f",
    );
    let ended = run(&runtime, &guest).await;
    let console = console(&ended);
    assert!(console.contains("none\r\n"), "{console}");
}

#[tokio::test]
async fn qemu_has_a_network_namespace_without_interfaces() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("SKIPPED: this test needs root");
        return;
    }
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(&runtime, spec(&files.guest("echo up; sleep 1000"))).await;
    let path = format!("/proc/{}/net/dev", bx.payload_pid.unwrap());
    let devices = fs::read_to_string(path).unwrap();
    // Two lines of headings, and the loopback interface.
    assert_eq!(devices.lines().count(), 3, "{devices}");
    runtime.remove(&bx.id, true).await.unwrap();
}

#[tokio::test]
async fn confined_qemu_uses_writable_disks_and_leaves_no_overlay() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let own = files.path("own");
    fs::write(&own, [0; 4096]).unwrap();
    let mut guest = files.guest_with_agent();
    guest.disks[0].access = DiskAccess::Overlay;
    guest
        .disks
        .push(Disk::read_only(own).access(DiskAccess::ReadWrite));
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = runtime.create(spec(&guest)).await.unwrap();
    let bx = runtime.start(&bx.id).await.unwrap();
    // QEMU has deleted the file that it uses, so none is left however QEMU ends.
    let overlays = fs::read_dir(bx.dir.join("overlays")).unwrap();
    assert_eq!(overlays.count(), 0);
    let fds = format!("/proc/{}/fd", bx.payload_pid.unwrap());
    let is_overlay = |fd: fs::DirEntry| {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        target.to_string_lossy().contains("/overlays/")
    };
    assert!(fs::read_dir(fds).unwrap().flatten().any(is_overlay));
    runtime.remove(&bx.id, true).await.unwrap();
}
