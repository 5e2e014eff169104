//! Whether a box that runs also works.

mod common;

use std::time::Duration;

use common::boxes::{dir_of, next, open, script, sleeping, started, until_info};
use common::{eventually, kill};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, HealthCheckOptions, HealthState, VmmRuntime};

fn often(check: HealthCheckOptions) -> HealthCheckOptions {
    check
        .interval(Duration::from_millis(20))
        .timeout(Duration::from_secs(30))
}

async fn until_health(runtime: &VmmRuntime, id: &str, health: HealthState) {
    until_info(runtime, id, |info| info.health == Some(health)).await;
}

#[tokio::test]
async fn health_becomes_healthy_and_unhealthy_when_the_shim_is_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let mut events = runtime.events();
    let spec = sleeping().health(often(HealthCheckOptions::command(["true"])));
    let running = started(&runtime, spec).await;
    assert_eq!(running.health, Some(HealthState::Starting));
    until_health(&runtime, &running.id, HealthState::Healthy).await;
    kill(running.pid.unwrap(), Signal::SIGKILL);
    let ended = until_info(&runtime, &running.id, |info| {
        info.status == BoxStatus::Failed
    })
    .await;
    assert_eq!(ended.health, Some(HealthState::Unhealthy));
    for expected in [
        BoxChange::Created,
        BoxChange::Started,
        BoxChange::Health,
        BoxChange::Failed,
    ] {
        assert_eq!(next(&mut events).await.change, expected);
    }
}

#[tokio::test]
async fn a_probe_that_fails_often_enough_makes_a_box_unhealthy_until_one_succeeds() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let check = HealthCheckOptions::command(["test", "-e", "well"]).retries(2);
    let running = started(&runtime, sleeping().health(often(check))).await;
    until_health(&runtime, &running.id, HealthState::Unhealthy).await;
    let well = dir_of(&home, &running.id).join("well");
    std::fs::write(&well, "").unwrap();
    until_health(&runtime, &running.id, HealthState::Healthy).await;
    std::fs::remove_file(&well).unwrap();
    until_health(&runtime, &running.id, HealthState::Unhealthy).await;
    let info = runtime.info(&running.id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Running);
}

#[tokio::test]
async fn a_probe_that_takes_too_long_has_failed_and_is_killed_with_its_group() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let slow = "sleep 1000 & echo $! >> children; wait";
    let check = HealthCheckOptions::command(["sh", "-c", slow])
        .interval(Duration::from_millis(10))
        .timeout(Duration::from_millis(300))
        .retries(1);
    let running = started(&runtime, sleeping().health(check)).await;
    until_health(&runtime, &running.id, HealthState::Unhealthy).await;
    until_first_child_is_gone(&home, &running.id).await;
    runtime.remove(&running.id, true).await.unwrap();
}

/// While the box goes on, and with it its probes.
async fn until_first_child_is_gone(home: &PerTestBoxHome, id: &str) {
    let children = std::fs::read_to_string(dir_of(home, id).join("children")).unwrap();
    let pid = children.lines().next().unwrap().parse().unwrap();
    eventually("the end of the probe's child", || {
        common::state_of(pid).is_none_or(|state| state == 'Z')
    })
    .await;
}

#[tokio::test]
async fn what_a_probe_leaves_behind_is_ended() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let check = HealthCheckOptions::command(["sh", "-c", "sleep 1000 & echo $! >> children"]);
    let running = started(&runtime, sleeping().health(often(check))).await;
    until_health(&runtime, &running.id, HealthState::Healthy).await;
    until_first_child_is_gone(&home, &running.id).await;
    runtime.remove(&running.id, true).await.unwrap();
}

#[tokio::test]
async fn a_probe_outlives_neither_its_box_nor_what_it_has_started() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let daemon = "setsid sleep 1000 & echo $! >> children";
    let check = often(HealthCheckOptions::command(["sh", "-c", daemon]));
    let running = started(&runtime, sleeping().health(check)).await;
    until_health(&runtime, &running.id, HealthState::Healthy).await;
    let children = std::fs::read_to_string(dir_of(&home, &running.id).join("children")).unwrap();
    runtime.remove(&running.id, true).await.unwrap();
    for child in children.lines() {
        let state = common::state_of(child.parse().unwrap());
        assert!(state.is_none_or(|state| state == 'Z'), "{state:?}");
    }
}

#[tokio::test]
async fn probes_come_more_often_in_the_start_period() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let check = HealthCheckOptions::command(["true"])
        .interval(Duration::from_secs(10_000))
        .start_period(Duration::from_secs(1000))
        .start_interval(Duration::from_millis(20));
    let running = started(&runtime, sleeping().health(check)).await;
    until_health(&runtime, &running.id, HealthState::Healthy).await;
}

#[tokio::test]
async fn the_start_period_forgives_failures() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let check = often(HealthCheckOptions::command([
        "sh",
        "-c",
        "echo x >> tries; false",
    ]))
    .retries(1)
    .start_period(Duration::from_secs(1000));
    let running = started(&runtime, sleeping().health(check)).await;
    let tries = dir_of(&home, &running.id).join("tries");
    eventually("a few probes", || {
        std::fs::read_to_string(&tries).is_ok_and(|text| text.lines().count() >= 3)
    })
    .await;
    let info = runtime.info(&running.id).await.unwrap();
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
async fn a_socket_probe_is_healthy_while_the_payload_answers() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let check = HealthCheckOptions::socket("agent.sock")
        .interval(Duration::from_millis(20))
        .timeout(Duration::from_millis(500))
        .retries(2);
    let spec = vmm_runtime::BoxSpec::new(["python3", "-c", ECHO]).health(check);
    let running = started(&runtime, spec).await;
    until_health(&runtime, &running.id, HealthState::Healthy).await;
    // It still accepts connections, and no more.
    kill(running.payload_pid.unwrap(), Signal::SIGSTOP);
    until_health(&runtime, &running.id, HealthState::Unhealthy).await;
    kill(running.payload_pid.unwrap(), Signal::SIGCONT);
    until_health(&runtime, &running.id, HealthState::Healthy).await;
}

#[tokio::test]
async fn a_box_that_was_asked_to_stop_is_not_unhealthy() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let spec = script("sleep 1000").health(often(HealthCheckOptions::command(["true"])));
    let running = started(&runtime, spec).await;
    let stopped = runtime.stop(&running.id).await.unwrap();
    assert_eq!((stopped.status, stopped.health), (BoxStatus::Stopped, None));
    assert_eq!(
        runtime.start(&running.id).await.unwrap().health,
        Some(HealthState::Starting)
    );
}

#[tokio::test]
async fn probes_do_not_show_in_the_numbers_of_shims() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let spec = sleeping().health(often(HealthCheckOptions::command(["true"])));
    let running = started(&runtime, spec).await;
    until_health(&runtime, &running.id, HealthState::Healthy).await;
    let metrics = runtime.metrics().await;
    assert_eq!(
        (metrics.shim_reaped, metrics.shim_reaper_registered),
        (0, 1)
    );
}
