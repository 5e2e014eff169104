//! Guests and the end of their VMM runtime.

use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Ending, GuestEvent};
use vmm_shim::QemuOptions;

use crate::common::{eventually, is_gone, kill};
use crate::guest::{GuestFiles, open_runtime, spec, start_up};

#[tokio::test]
async fn a_detached_guest_outlives_its_runtime_and_its_end_is_reported_later() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest("echo up; sleep 8; poweroff -f");
    let bx = start_up(&runtime, spec(&guest).detached(true)).await;
    drop(runtime);
    eventually("the guest powers off without a runtime", || {
        is_gone(bx.pid.unwrap())
    })
    .await;

    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    let event = GuestEvent::PoweredOff;
    assert_eq!(found.ending, Some(Ending::Guest { event }), "{found:?}");
    assert_eq!(found.status, BoxStatus::Stopped);
    assert_eq!(QemuOptions::of(&found.spec.payload).unwrap(), guest);
}

#[tokio::test]
async fn the_next_runtime_reports_the_end_of_a_detached_guest() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest("echo up; sleep 1000");
    let bx = start_up(&runtime, spec(&guest).detached(true)).await;
    drop(runtime);

    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!(found.status, BoxStatus::Running);
    assert_eq!((found.pid, found.payload_pid), (bx.pid, bx.payload_pid));
    kill(bx.payload_pid.unwrap(), Signal::SIGKILL);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!((ended.status, ended.signal), (BoxStatus::Failed, Some(9)));
}

#[tokio::test]
async fn an_attached_guest_ends_with_its_runtime() {
    let Some(files) = GuestFiles::find() else {
        return;
    };
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let guest = files.guest("echo up; sleep 1000");
    let bx = start_up(
        &runtime,
        spec(&guest).stop_grace(std::time::Duration::from_secs(1)),
    )
    .await;
    drop(runtime);
    eventually("QEMU has ended", || is_gone(bx.payload_pid.unwrap())).await;
    eventually("the shim has ended", || is_gone(bx.pid.unwrap())).await;
}
