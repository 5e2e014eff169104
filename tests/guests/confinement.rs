//! What QEMU, which a guest could take over, may do on the host.

use std::fs;

use vmm_runtime::testing::PerTestBoxHome;

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
