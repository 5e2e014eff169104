//! How guests end, and what their boxes report.

use std::time::Duration;

use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Ending, GuestEvent};

use crate::common::{is_gone, is_zombie, kill};
use crate::guest::{GuestFiles, console, open_runtime, run, spec, start_up};

const SLEEP: &str = "echo up; sleep 1000";

/// Makes the power button power the guest off.
pub const POWER_OFF_AT_BUTTON: &str = "insmod /bin/button.ko; insmod /bin/evdev.ko
    for device in /dev/input/event*; do
        exec 3< $device
        (dd bs=24 count=1 <&3 > /dev/null; poweroff -f) &
    done";

#[tokio::test]
async fn a_guest_that_powers_off_has_stopped() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let ended = run(&runtime, &files.guest("echo hello; poweroff -f")).await;
    let event = GuestEvent::PoweredOff;
    assert_eq!(ended.ending, Some(Ending::Guest { event }), "{ended:?}");
    assert_eq!(
        (ended.status, ended.exit_code),
        (BoxStatus::Stopped, Some(0))
    );
    assert!(console(&ended).contains("hello"), "{}", console(&ended));
}

#[tokio::test]
async fn a_guest_that_reboots_has_failed() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let ended = run(&runtime, &files.guest("reboot -f")).await;
    let event = GuestEvent::Reset;
    assert_eq!(ended.ending, Some(Ending::Guest { event }), "{ended:?}");
    assert_eq!(ended.status, BoxStatus::Failed);
}

#[tokio::test]
async fn a_guest_whose_kernel_panics_has_failed() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files
        .guest("insmod /bin/pvpanic.ko; insmod /bin/pvpanic-mmio.ko; echo c > /proc/sysrq-trigger");
    let ended = run(&runtime, &guest).await;
    let event = GuestEvent::Panicked;
    assert_eq!(ended.ending, Some(Ending::Guest { event }), "{ended:?}");
    assert_eq!(
        (ended.status, ended.exit_code),
        (BoxStatus::Failed, Some(1))
    );
    let error = ended.error.unwrap();
    assert!(
        error.starts_with("the kernel of the guest panicked"),
        "{error}"
    );
}

#[tokio::test]
async fn a_killed_qemu_is_a_failure() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(&runtime, spec(&files.guest(SLEEP))).await;
    kill(bx.payload_pid.unwrap(), Signal::SIGKILL);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
}

#[tokio::test]
async fn a_qemu_that_another_process_terminates_is_a_failure() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(&runtime, spec(&files.guest(SLEEP))).await;
    kill(bx.payload_pid.unwrap(), Signal::SIGTERM);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(15)));
}

#[tokio::test]
async fn a_guest_dies_with_its_shim() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_up(&runtime, spec(&files.guest(SLEEP))).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let ended = runtime.wait(&bx.id).await.unwrap();
    // QEMU is a child of init then, which reaps it.
    let qemu = bx.payload_pid.unwrap();
    assert!(is_gone(qemu) || is_zombie(qemu));
    assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
}

#[tokio::test]
async fn a_stop_presses_the_power_button() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest(&format!("{POWER_OFF_AT_BUTTON}; {SLEEP}"));
    let bx = start_up(&runtime, spec(&guest).stop_grace(Duration::from_secs(120))).await;
    let ended = runtime.stop(&bx.id).await.unwrap();
    let event = GuestEvent::PoweredOff;
    assert_eq!(ended.ending, Some(Ending::Guest { event }), "{ended:?}");
    assert_eq!(ended.status, BoxStatus::Stopped);
}

#[tokio::test]
async fn a_guest_that_ignores_its_power_button_is_stopped_within_the_grace_period_of_the_stop() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = spec(&files.guest(SLEEP)).stop_grace(Duration::from_secs(3600));
    let bx = start_up(&runtime, spec).await;
    // QEMU has a quarter of it for SIGTERM, also on a loaded machine.
    let grace = Duration::from_secs(30);
    let ended = runtime.stop_within(&bx.id, grace).await.unwrap();
    // SIGTERM, which lets QEMU write its disks, and not SIGKILL at the end of the period.
    assert_eq!((ended.status, ended.signal), (BoxStatus::Stopped, Some(15)));
    assert!(is_gone(bx.payload_pid.unwrap()));
}
