//! The VMM runtime notices the death of a shim at once, and ends the processes of its payload.

mod common;

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::boxes::{
    exits_on_go, next_event, open_runtime, orphan_of, script, send_go, sleeping, start_box,
    wait_for_status,
};
use common::own_process::{block_on, in_own_process};
use common::{eventually, is_gone, kill};
use futures::StreamExt;
use nix::sys::signal::Signal;
use vmm_protocol::procfs;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxChange, BoxEvent, BoxStatus, Ending, HealthCheckOptions, HealthState, Removal,
};

#[tokio::test]
async fn a_killed_shim_causes_exactly_one_event() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let check = HealthCheckOptions::command(["true"]);
    let bx = start_box(&runtime, sleeping().health(check)).await;
    let mut events = runtime.events();
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let event = next_event(&mut events).await;
    assert_eq!(event.change, BoxChange::Failed);
    assert_eq!(event.info.status, BoxStatus::Failed);
    assert_eq!(
        (event.info.signal, event.info.exit_code),
        (Some(9), Some(137))
    );
    assert_eq!(event.info.health, Some(HealthState::Unhealthy));
    assert_eq!((event.info.pid, event.info.payload_pid), (None, None));
    assert!(is_gone(bx.pid.unwrap()));
    eventually("the payload exits", || is_gone(bx.payload_pid.unwrap())).await;
    // The death of the shim causes no further event.
    runtime.remove(&bx.id, Removal::Ended).await.unwrap();
    assert_eq!(next_event(&mut events).await.change, BoxChange::Removed);
    let metrics = runtime.metrics().await;
    assert_eq!(metrics.boxes_failed_total, 1);
    assert_eq!((metrics.num_running_boxes, metrics.shim_reaped), (0, 1));
}

/// The median of twenty deaths, because the machine may be busy at times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_death_is_reported_within_fifty_milliseconds() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut delays = Vec::new();
    for _ in 0..20 {
        let bx = start_box(&runtime, sleeping()).await;
        let mut events = runtime.events();
        let start = Instant::now();
        kill(bx.pid.unwrap(), Signal::SIGKILL);
        next_event(&mut events).await;
        delays.push(start.elapsed());
    }
    delays.sort_unstable();
    // A quarter of them, because others use the processors too. Polling would delay most.
    assert!(delays[5] < Duration::from_millis(50), "{delays:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_shim_death_is_reported_while_the_callers_tokio_runtime_is_blocked() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let mut events = runtime.events();
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    let mut event = Poll::Pending;
    common::eventually_blocking("an event", || {
        event = events.poll_next_unpin(&mut Context::from_waker(Waker::noop()));
        event.is_ready()
    });
    let changed = |event: Option<BoxEvent>| event.map(|event| event.change);
    assert_eq!(event.map(changed), Poll::Ready(Some(BoxChange::Failed)));
}

#[tokio::test]
async fn a_box_ends_as_its_payload_ended() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for (code, status, health) in [
        (0, BoxStatus::Stopped, HealthState::Unhealthy),
        (42, BoxStatus::Failed, HealthState::Unhealthy),
    ] {
        let spec = exits_on_go(code).health(HealthCheckOptions::command(["true"]));
        let running = start_box(&runtime, spec).await;
        send_go(&home, &running.id);
        let ended = wait_for_status(&runtime, &running.id, status).await;
        assert_eq!((ended.exit_code, ended.health), (Some(code), Some(health)));
    }
    // A real-time signal, which has no name in some interfaces.
    let bx = start_box(&runtime, sleeping()).await;
    let status = std::process::Command::new("kill")
        .args(["-40", &bx.payload_pid.unwrap().to_string()])
        .status();
    assert!(status.unwrap().success());
    let ended = wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    assert_eq!((ended.signal, ended.exit_code), (Some(40), Some(168)));
    let bx = start_box(&runtime, script("kill -SEGV $$")).await;
    let ended = wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    assert_eq!(ended.ending, Some(Ending::Signaled { signal: 11 }));
    assert!(ended.error.unwrap().contains("SIGSEGV"));
}

#[tokio::test]
async fn descendants_of_a_payload_are_killed_with_their_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script("setsid sleep 1000 & sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait");
    let bx = start_box(&runtime, spec).await;
    let orphan = orphan_of(&home, &bx.id).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    eventually("the descendants of the payload exit", || {
        is_gone(orphan) && processes_of(&bx.id).is_empty()
    })
    .await;
}

/// The descendant is identified by its session, not by its parent or environment.
#[tokio::test]
async fn descendants_with_an_empty_environment_are_killed_with_their_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script("env -i sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait");
    let bx = start_box(&runtime, spec).await;
    let orphan = orphan_of(&home, &bx.id).await;
    let is_sleep = |pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
    };
    eventually("the orphan clears its environment", || is_sleep(orphan)).await;
    kill(bx.pid.unwrap(), Signal::SIGKILL);
    wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    eventually("the orphan exits", || is_gone(orphan)).await;
}

/// A subreaper, or pid 1 of a container, becomes the parent of the payloads of killed shims.
#[test]
fn orphans_that_the_process_inherits_are_reaped_and_not_counted_as_shims() {
    let test = "orphans_that_the_process_inherits_are_reaped_and_not_counted_as_shims";
    in_own_process(test, || {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        block_on(async {
            let home = PerTestBoxHome::new();
            let runtime = open_runtime(&home).await;
            let mut pids = Vec::new();
            for _ in 0..5 {
                let spec = script("setsid sleep 1000 & echo $! > $VMM_BOX_DIR/orphan; wait");
                let bx = start_box(&runtime, spec).await;
                pids.push(orphan_of(&home, &bx.id).await);
                pids.extend([bx.pid.unwrap(), bx.payload_pid.unwrap()]);
                kill(bx.pid.unwrap(), Signal::SIGKILL);
            }
            for pid in pids {
                eventually("the process is reaped", || is_gone(pid)).await;
            }
            let metrics = runtime.metrics().await;
            assert_eq!((metrics.shim_reaped, metrics.shim_reaper_vanished), (5, 0));
        });
    });
}

/// During an execve(2) a process has no environment that would identify it.
#[tokio::test]
async fn an_orphan_that_executes_programs_in_a_loop_is_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut orphans = Vec::new();
    for _ in 0..20 {
        let again = "#!/bin/sh\\nexec ./again\\n";
        let spec = script(&format!(
            "cd $VMM_BOX_DIR; printf '{again}' > again; chmod +x again; \
             setsid ./again & echo $! > orphan; wait"
        ));
        let bx = start_box(&runtime, spec).await;
        let orphan = orphan_of(&home, &bx.id).await;
        kill(bx.pid.unwrap(), Signal::SIGKILL);
        runtime.remove(&bx.id, Removal::Force).await.unwrap();
        orphans.push(orphan);
    }
    eventually("the orphans exit", || {
        orphans.iter().all(|orphan| is_gone(*orphan))
    })
    .await;
}

fn processes_of(id: &str) -> Vec<u32> {
    let variable = format!("VMM_BOX_ID={id}");
    let has_box_id = |pid: &u32| {
        let environment = procfs::environment(*pid).unwrap().unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&variable)
    };
    procfs::pids().unwrap().filter(has_box_id).collect()
}
