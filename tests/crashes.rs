//! A shim that dies is known at once, asked or not.

mod common;

use std::time::{Duration, Instant};

use common::boxes::{exits_on_go, go, next, open, script, sleeping, started, stray_of, until};
use common::own_process::{block_on, in_own_process};
use common::{eventually, is_gone, kill};
use futures::{FutureExt, StreamExt};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, Ending, HealthCheckOptions, HealthState};

#[tokio::test]
async fn a_shim_killed_mid_run_is_reported_unasked_by_exactly_one_event() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let check = HealthCheckOptions::command(["true"]);
    let running = started(&runtime, sleeping().health(check)).await;
    let mut events = runtime.events();
    kill(running.pid.unwrap(), Signal::SIGKILL);
    let event = next(&mut events).await;
    assert_eq!(event.change, BoxChange::Failed);
    assert_eq!(event.info.status, BoxStatus::Failed);
    assert_eq!(
        (event.info.signal, event.info.exit_code),
        (Some(9), Some(137))
    );
    assert_eq!(event.info.health, Some(HealthState::Unhealthy));
    assert_eq!((event.info.pid, event.info.payload_pid), (None, None));
    assert!(is_gone(running.pid.unwrap()));
    eventually("the end of the payload", || {
        is_gone(running.payload_pid.unwrap())
    })
    .await;
    // The next thing to happen is nothing of that death's.
    runtime.remove(&running.id, false).await.unwrap();
    assert_eq!(next(&mut events).await.change, BoxChange::Removed);
    let metrics = runtime.metrics().await;
    assert_eq!(metrics.boxes_failed_total, 1);
    assert_eq!((metrics.num_running_boxes, metrics.shim_reaped), (0, 1));
}

/// Most of twenty, since a machine may be busy at any one moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_is_told_within_fifty_milliseconds_with_nobody_awaiting() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let mut delays = Vec::new();
    for _ in 0..20 {
        let running = started(&runtime, sleeping()).await;
        let mut events = runtime.events();
        let killed = Instant::now();
        kill(running.pid.unwrap(), Signal::SIGKILL);
        next(&mut events).await;
        delays.push(killed.elapsed());
    }
    delays.sort_unstable();
    assert!(delays[10] < Duration::from_millis(50), "{delays:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_death_is_told_although_the_callers_runtime_is_blocked() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    let mut events = runtime.events();
    kill(running.pid.unwrap(), Signal::SIGKILL);
    let mut told = None;
    common::eventually_blocking("an event", || {
        told = events.next().now_or_never();
        told.is_some()
    });
    assert_eq!(told.unwrap().unwrap().change, BoxChange::Failed);
}

#[tokio::test]
async fn how_the_payload_ended_is_how_the_box_did() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    for (code, status, health) in [
        (0, BoxStatus::Stopped, HealthState::Unhealthy),
        (42, BoxStatus::Failed, HealthState::Unhealthy),
    ] {
        let spec = exits_on_go(code).health(HealthCheckOptions::command(["true"]));
        let running = started(&runtime, spec).await;
        go(&home, &running.id);
        let ended = until(&runtime, &running.id, status).await;
        assert_eq!((ended.exit_code, ended.health), (Some(code), Some(health)));
    }
    // A real-time signal, which not every interface can name.
    let by_hand = started(&runtime, sleeping()).await;
    let killed = std::process::Command::new("kill")
        .args(["-40", &by_hand.payload_pid.unwrap().to_string()])
        .status();
    assert!(killed.unwrap().success());
    let ended = until(&runtime, &by_hand.id, BoxStatus::Failed).await;
    assert_eq!((ended.signal, ended.exit_code), (Some(40), Some(168)));
    let crashing = started(&runtime, script("kill -SEGV $$")).await;
    let ended = until(&runtime, &crashing.id, BoxStatus::Failed).await;
    assert_eq!(ended.ending, Some(Ending::Signaled { signal: 11 }));
    assert!(ended.error.unwrap().contains("SIGSEGV"));
}

#[tokio::test]
async fn descendants_of_a_payload_do_not_survive_their_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let spec = script("setsid sleep 1000 & sleep 1000 & echo $! > $VMM_BOX_DIR/stray; wait");
    let running = started(&runtime, spec).await;
    let stray = stray_of(&home, &running.id).await;
    kill(running.pid.unwrap(), Signal::SIGKILL);
    until(&runtime, &running.id, BoxStatus::Failed).await;
    eventually("the end of what the payload had started", || {
        is_gone(stray) && processes_of(&running.id).is_empty()
    })
    .await;
}

/// Neither its parent, nor its environment gives it away, but its session does.
#[tokio::test]
async fn descendants_that_have_emptied_their_environment_do_not_survive_either() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let spec = script("env -i sleep 1000 & echo $! > $VMM_BOX_DIR/stray; wait");
    let running = started(&runtime, spec).await;
    let stray = stray_of(&home, &running.id).await;
    let is_sleep = |pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
    };
    eventually("its environment is empty", || is_sleep(stray)).await;
    kill(running.pid.unwrap(), Signal::SIGKILL);
    until(&runtime, &running.id, BoxStatus::Failed).await;
    eventually("its end", || is_gone(stray)).await;
}

/// To a subreaper, or to pid 1 of a container, fall the payloads of shims that were killed.
#[test]
fn orphans_that_fall_to_the_runtimes_process_are_collected_and_not_counted_as_shims() {
    let test = "orphans_that_fall_to_the_runtimes_process_are_collected_and_not_counted_as_shims";
    in_own_process(test, || {
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        block_on(async {
            let home = PerTestBoxHome::new();
            let runtime = open(&home).await;
            let mut pids = Vec::new();
            for _ in 0..5 {
                let spec = script("setsid sleep 1000 & echo $! > $VMM_BOX_DIR/stray; wait");
                let running = started(&runtime, spec).await;
                pids.push(stray_of(&home, &running.id).await);
                pids.extend([running.pid.unwrap(), running.payload_pid.unwrap()]);
                kill(running.pid.unwrap(), Signal::SIGKILL);
            }
            for pid in pids {
                eventually("it is collected", || is_gone(pid)).await;
            }
            let metrics = runtime.metrics().await;
            assert_eq!((metrics.shim_reaped, metrics.shim_reaper_vanished), (5, 0));
        });
    });
}

/// While a program is being executed, its process has no environment to be known by.
#[tokio::test]
async fn a_stray_that_executes_one_program_after_another_is_ended() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let mut strays = Vec::new();
    for _ in 0..20 {
        let again = "#!/bin/sh\\nexec ./again\\n";
        let spec = script(&format!(
            "cd $VMM_BOX_DIR; printf '{again}' > again; chmod +x again; \
             setsid ./again & echo $! > stray; wait"
        ));
        let running = started(&runtime, spec).await;
        let stray = stray_of(&home, &running.id).await;
        kill(running.pid.unwrap(), Signal::SIGKILL);
        runtime.remove(&running.id, true).await.unwrap();
        strays.push(stray);
    }
    eventually("their end", || strays.iter().all(|stray| is_gone(*stray))).await;
}

fn processes_of(id: &str) -> Vec<u32> {
    let marked = |pid: &u32| {
        std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| String::from_utf8_lossy(&env).contains(&format!("VMM_BOX_ID={id}")))
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(marked)
        .collect()
}
