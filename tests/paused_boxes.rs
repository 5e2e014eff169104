//! Boxes whose payload is frozen.

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::boxes::{next_event, open_runtime, script, start_box, wait_for_status};
use common::{eventually, pause, skip};
use futures::StreamExt;
use vmm_protocol::frames::{Frame, HostMessage, VERSION};
use vmm_protocol::{BoxDir, ControlGroup};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxChange, BoxInfo, BoxSpec, BoxStatus, ExecError, ExecSpec, HealthCheckOptions, HealthState,
    Removal, RequestErrorKind, RuntimeError, VmmRuntime, with_causes,
};

/// Returns a spec whose payload writes a growing number.
fn ticking() -> BoxSpec {
    script("i=0; while :; do i=$((i + 1)); echo $i >$VMM_BOX_DIR/ticks; sleep 0.001; done")
}

fn ticks(bx: &BoxInfo) -> String {
    std::fs::read_to_string(bx.dir.join("ticks")).unwrap_or_default()
}

/// Pauses a box. Returns `None` if this host cannot.
async fn pause_box(runtime: &VmmRuntime, bx: &BoxInfo) -> Option<BoxInfo> {
    match runtime.pause(bx.id.as_str()).await {
        Err(RuntimeError::Exec {
            source: ExecError::Refused(error),
            ..
        }) if error.kind == RequestErrorKind::Unsupported => {
            skip(&error.message);
            None
        }
        paused => Some(paused.unwrap()),
    }
}

#[tokio::test]
async fn a_paused_box_does_nothing_until_it_is_resumed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, ticking()).await;
    let id = bx.id.as_str();
    let mut events = runtime.events();
    eventually("the payload works", || !ticks(&bx).is_empty()).await;
    let Some(paused) = pause_box(&runtime, &bx).await else {
        return;
    };
    assert_eq!(paused.status, BoxStatus::Paused);
    let paused_at = ticks(&bx);
    assert_eq!(runtime.count_boxes().await.paused, 1);
    assert_eq!(runtime.start(id).await.unwrap().status, BoxStatus::Paused);
    assert_eq!(runtime.pause(id).await.unwrap().status, BoxStatus::Paused);
    let refused = runtime.exec(id, ExecSpec::new("", ["true"])).await;
    assert!(matches!(refused, Err(RuntimeError::Paused { .. })));
    assert_eq!(ticks(&bx), paused_at);

    let resumed = runtime.resume(id).await.unwrap();
    assert_eq!(resumed.status, BoxStatus::Running);
    eventually("the payload continues", || ticks(&bx) != paused_at).await;
    // It was moved into a group for the first pause only.
    pause_box(&runtime, &bx).await.unwrap();
    runtime.remove(id, Removal::Force).await.unwrap();
    for change in [
        BoxChange::Paused,
        BoxChange::Resumed,
        BoxChange::Paused,
        BoxChange::Stopped,
        BoxChange::Removed,
    ] {
        assert_eq!(events.next().await.unwrap().change, change);
    }
}

#[tokio::test]
async fn a_paused_box_with_limits_is_stopped_in_order() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut spec =
        script("trap 'exit 7' TERM; touch $VMM_BOX_DIR/up; while :; do sleep 0.01; done");
    spec.payload.pids = Some(100);
    let bx = start_box(&runtime, spec).await;
    eventually("the payload is up", || bx.dir.join("up").exists()).await;
    if pause_box(&runtime, &bx).await.is_none() {
        return;
    }
    let stopped = runtime.stop(bx.id.as_str()).await.unwrap();
    assert_eq!(stopped.exit_code, Some(7), "{stopped:?}");
    let refused = runtime.pause(bx.id.as_str()).await;
    assert!(matches!(refused, Err(RuntimeError::NotRunning { .. })));
}

#[tokio::test]
async fn nothing_is_left_of_a_paused_box_whose_shim_is_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, ticking()).await;
    if pause_box(&runtime, &bx).await.is_none() {
        return;
    }
    common::kill(bx.pid.unwrap(), nix::sys::signal::Signal::SIGKILL);
    let ended = runtime.wait(bx.id.as_str()).await.unwrap();
    assert_eq!(ended.status, BoxStatus::Failed);
    let group = vmm_protocol::ControlGroup::of_box(&bx.dir).unwrap();
    assert_eq!(group, None);
}

#[tokio::test]
async fn a_paused_box_is_paused_for_the_next_runtime() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, ticking().detached(true)).await;
    let id = bx.id.as_str();
    if pause_box(&runtime, &bx).await.is_none() {
        return runtime.remove(id, Removal::Force).await.unwrap();
    }
    drop(runtime);
    let runtime = open_runtime(&home).await;
    let info = runtime.info(id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Paused);
    let paused_at = ticks(&bx);
    runtime.resume(id).await.unwrap();
    eventually("the payload continues", || ticks(&bx) != paused_at).await;
    runtime.remove(id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_paused_box_is_not_probed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut check = HealthCheckOptions::command(["sh", "-c", "test ! -e sick"]);
    check.interval = Duration::from_millis(10);
    check.retries = 1;
    let bx = start_box(&runtime, ticking().health(check)).await;
    let id = bx.id.as_str();
    let health = async || runtime.info(id).await.unwrap().health;
    while health().await != Some(HealthState::Healthy) {
        pause().await;
    }
    if pause_box(&runtime, &bx).await.is_none() {
        return;
    }
    std::fs::write(bx.dir.join("sick"), "").unwrap();
    for _ in 0..20 {
        pause().await;
        assert_eq!(health().await, Some(HealthState::Healthy));
    }
    runtime.resume(id).await.unwrap();
    while health().await != Some(HealthState::Unhealthy) {
        pause().await;
    }
    runtime.remove(id, Removal::Force).await.unwrap();
    let error = runtime.pause(id).await.unwrap_err();
    assert!(with_causes(&error).contains("not found"), "{error}");
}

/// Freezes the payload of a box without its runtime.
async fn pause_behind_the_runtime(bx: &BoxInfo) {
    let mut wire = Vec::new();
    let version = VERSION;
    for (stream, message) in [(0, HostMessage::Hello { version }), (1, HostMessage::Pause)] {
        Frame::new(stream, message).encode(&mut wire).unwrap();
    }
    let mut shim = UnixStream::connect(bx.dir.join("control.sock")).unwrap();
    shim.write_all(&wire).unwrap();
    let is_frozen = || {
        let group = ControlGroup::of_shim(&bx.dir, bx.pid.unwrap()).unwrap();
        group.is_some_and(|group| group.is_frozen())
    };
    eventually("the payload is frozen", is_frozen).await;
}

#[tokio::test]
async fn a_box_whose_pause_the_runtime_does_not_know_is_resumed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, ticking()).await;
    let id = bx.id.as_str();
    if pause_box(&runtime, &bx).await.is_none() {
        return;
    }
    runtime.resume(id).await.unwrap();
    pause_behind_the_runtime(&bx).await;
    wait_for_status(&runtime, id, BoxStatus::Paused).await;
    // As after a recovery that could not read whether the payload is frozen.
    BoxDir::new(&bx.dir).write_paused(false).unwrap();
    wait_for_status(&runtime, id, BoxStatus::Running).await;
    let paused_at = ticks(&bx);
    runtime.resume(id).await.unwrap();
    eventually("the payload continues", || ticks(&bx) != paused_at).await;
    runtime.remove(id, Removal::Force).await.unwrap();
}

/// As the shim does when QEMU reports that it has stopped the guest.
#[tokio::test]
async fn a_payload_that_is_paused_without_a_request_is_shown_as_paused() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, ticking()).await;
    let id = bx.id.as_str();
    let mut events = runtime.events();
    let record = BoxDir::new(&bx.dir);
    for _ in 0..2 {
        record.write_paused(true).unwrap();
        let event = next_event(&mut events).await;
        assert_eq!(event.change, BoxChange::Paused);
        assert_eq!(event.info.status, BoxStatus::Paused);
        record.write_paused(false).unwrap();
        assert_eq!(next_event(&mut events).await.change, BoxChange::Resumed);
    }
    let info = runtime.info(id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Running);

    // The next run is watched, too. Its stop lets it continue, which is not a change.
    runtime.stop(id).await.unwrap();
    runtime.start(id).await.unwrap();
    let mut events = runtime.events();
    record.write_paused(true).unwrap();
    assert_eq!(next_event(&mut events).await.change, BoxChange::Paused);
    runtime.stop(id).await.unwrap();
    assert_eq!(next_event(&mut events).await.change, BoxChange::Stopped);
    assert!(!record.is_paused());
}
