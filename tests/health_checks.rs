//! The health checks of running boxes.

mod common;

use std::time::Duration;

use common::boxes::{
    box_dir, next_event, open_runtime, script, sleeping, start_box, wait_for_info,
};
use common::{eventually, kill};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, HealthCheckOptions, HealthState, Removal, VmmRuntime};

/// Makes a check run often.
fn often(check: HealthCheckOptions) -> HealthCheckOptions {
    check
        .interval(Duration::from_millis(20))
        .timeout(Duration::from_secs(30))
}

async fn wait_for_health(runtime: &VmmRuntime, id: &str, health: HealthState) {
    wait_for_info(runtime, id, |info| info.health == Some(health)).await;
}

#[tokio::test]
async fn a_box_becomes_healthy_and_then_unhealthy_when_its_shim_is_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut events = runtime.events();
    let spec = sleeping().health(often(HealthCheckOptions::command(["true"])));
    let bx = start_box(&runtime, spec).await;
    assert_eq!(bx.health, Some(HealthState::Starting));
    wait_for_health(&runtime, &bx.id, HealthState::Healthy).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let ended = wait_for_info(&runtime, &bx.id, |info| info.status == BoxStatus::Failed).await;
    assert_eq!(ended.health, Some(HealthState::Unhealthy));
    for expected in [
        BoxChange::Created,
        BoxChange::Starting,
        BoxChange::Started,
        BoxChange::Health,
        BoxChange::Failed,
    ] {
        assert_eq!(next_event(&mut events).await.change, expected);
    }
}

#[tokio::test]
async fn repeated_failures_make_a_box_unhealthy_until_a_probe_succeeds() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let check = HealthCheckOptions::command(["test", "-e", "well"]).retries(2);
    let bx = start_box(&runtime, sleeping().health(often(check))).await;
    wait_for_health(&runtime, &bx.id, HealthState::Unhealthy).await;
    let well = box_dir(&home, &bx.id).join("well");
    std::fs::write(&well, "").unwrap();
    wait_for_health(&runtime, &bx.id, HealthState::Healthy).await;
    std::fs::remove_file(&well).unwrap();
    wait_for_health(&runtime, &bx.id, HealthState::Unhealthy).await;
    let info = runtime.info(&bx.id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Running);
}

#[tokio::test]
async fn a_probe_that_times_out_fails_and_is_killed_with_its_group() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let slow = "sleep 1000 & echo $! >> children; wait";
    let check = HealthCheckOptions::command(["sh", "-c", slow])
        .interval(Duration::from_millis(10))
        .timeout(Duration::from_millis(300))
        .retries(1);
    let bx = start_box(&runtime, sleeping().health(check)).await;
    wait_for_health(&runtime, &bx.id, HealthState::Unhealthy).await;
    wait_until_first_child_is_gone(&home, &bx.id).await;
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

/// Waits until the first child that a probe has started is gone. The box and its probes keep
/// running.
async fn wait_until_first_child_is_gone(home: &PerTestBoxHome, id: &str) {
    let children = std::fs::read_to_string(box_dir(home, id).join("children")).unwrap();
    let pid = children.lines().next().unwrap().parse().unwrap();
    eventually("the child of the probe exits", || {
        common::state_of(pid).is_none_or(|state| state == 'Z')
    })
    .await;
}

#[tokio::test]
async fn processes_left_by_a_probe_are_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let check = HealthCheckOptions::command(["sh", "-c", "sleep 1000 & echo $! >> children"]);
    let bx = start_box(&runtime, sleeping().health(often(check))).await;
    wait_for_health(&runtime, &bx.id, HealthState::Healthy).await;
    wait_until_first_child_is_gone(&home, &bx.id).await;
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_removal_kills_the_processes_of_probes() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let daemon = "setsid sleep 1000 & echo $! >> children";
    let check = often(HealthCheckOptions::command(["sh", "-c", daemon]));
    let bx = start_box(&runtime, sleeping().health(check)).await;
    wait_for_health(&runtime, &bx.id, HealthState::Healthy).await;
    let children = std::fs::read_to_string(box_dir(&home, &bx.id).join("children")).unwrap();
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
    for child in children.lines() {
        let state = common::state_of(child.parse().unwrap());
        assert!(state.is_none_or(|state| state == 'Z'), "{state:?}");
    }
}

#[tokio::test]
async fn probes_run_more_often_in_the_start_period() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let check = HealthCheckOptions::command(["true"])
        .interval(Duration::from_secs(10_000))
        .start_period(Duration::from_secs(1000))
        .start_interval(Duration::from_millis(20));
    let bx = start_box(&runtime, sleeping().health(check)).await;
    wait_for_health(&runtime, &bx.id, HealthState::Healthy).await;
}

#[tokio::test]
async fn failures_in_the_start_period_do_not_count() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let check = often(HealthCheckOptions::command([
        "sh",
        "-c",
        "echo x >> tries; false",
    ]))
    .retries(1)
    .start_period(Duration::from_secs(1000));
    let bx = start_box(&runtime, sleeping().health(check)).await;
    let tries = box_dir(&home, &bx.id).join("tries");
    eventually("three probes run", || {
        std::fs::read_to_string(&tries).is_ok_and(|text| text.lines().count() >= 3)
    })
    .await;
    let info = runtime.info(&bx.id).await.unwrap();
    assert_eq!(info.health, Some(HealthState::Starting));
}

const ECHO: &str = "import os, socket
s = socket.socket(socket.AF_UNIX)
s.bind(os.environ['VMM_BOX_DIR'] + '/agent.sock')
s.listen()
while True:
    c, _ = s.accept()
    try: c.sendall(c.recv(64))
    except OSError: pass
    c.close()";

#[tokio::test]
async fn a_socket_probe_succeeds_while_the_payload_responds() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let check = HealthCheckOptions::socket("agent.sock")
        .interval(Duration::from_millis(20))
        .timeout(Duration::from_millis(500))
        .retries(2);
    let spec = vmm_runtime::BoxSpec::new(["python3", "-c", ECHO]).health(check);
    let bx = start_box(&runtime, spec).await;
    wait_for_health(&runtime, &bx.id, HealthState::Healthy).await;
    // The kernel still accepts connections, but the payload does not respond.
    kill(bx.payload_pid.unwrap(), Signal::SIGSTOP);
    wait_for_health(&runtime, &bx.id, HealthState::Unhealthy).await;
    kill(bx.payload_pid.unwrap(), Signal::SIGCONT);
    wait_for_health(&runtime, &bx.id, HealthState::Healthy).await;
}

#[tokio::test]
async fn a_stopped_box_has_no_health() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script("sleep 1000").health(often(HealthCheckOptions::command(["true"])));
    let bx = start_box(&runtime, spec).await;
    let stopped = runtime.stop(&bx.id).await.unwrap();
    assert_eq!((stopped.status, stopped.health), (BoxStatus::Stopped, None));
    assert_eq!(
        runtime.start(&bx.id).await.unwrap().health,
        Some(HealthState::Starting)
    );
}

#[tokio::test]
async fn probes_are_not_counted_as_shims() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = sleeping().health(often(HealthCheckOptions::command(["true"])));
    let bx = start_box(&runtime, spec).await;
    wait_for_health(&runtime, &bx.id, HealthState::Healthy).await;
    let metrics = runtime.metrics().await;
    assert_eq!(
        (metrics.shim_reaped, metrics.shim_reaper_registered),
        (0, 1)
    );
}
