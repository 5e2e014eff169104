//! The operations on one box, one after the other.

mod common;

use std::time::Duration;

use common::boxes::{
    box_dir, changes_up_to, exits_on_go, ignores_sigterm, open_runtime, script, send_go, sleeping,
    start_box, wait_for_status,
};
use common::{is_gone, state_of};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, Ending, Removal, RuntimeError};

#[tokio::test]
async fn a_box_is_created_started_stopped_restarted_and_removed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut events = runtime.events();

    let bx = runtime.create(sleeping().name("nap")).await.unwrap();
    assert_eq!(bx.status, BoxStatus::Configured);
    assert_eq!((bx.pid, bx.exit_code), (None, None));

    let first = runtime.start("nap").await.unwrap();
    assert_eq!((first.status, &first.id), (BoxStatus::Running, &bx.id));
    let (shim, payload) = (first.pid.unwrap(), first.payload_pid.unwrap());
    assert!(matches!(state_of(shim), Some('S' | 'R')));
    assert!(matches!(state_of(payload), Some('S' | 'R' | 'D')));

    let stopped = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!((stopped.exit_code, stopped.signal), (Some(143), Some(15)));
    assert_eq!((stopped.pid, stopped.error), (None, None));
    assert!(is_gone(shim) && is_gone(payload));

    let second = runtime.start("nap").await.unwrap();
    assert_eq!((second.exit_code, second.signal), (None, None));
    assert_ne!(second.pid, first.pid);
    runtime.stop("nap").await.unwrap();
    runtime.remove("nap", Removal::Ended).await.unwrap();
    assert!(!box_dir(&home, &bx.id).exists());
    assert!(runtime.list().await.is_empty());
    assert!(matches!(
        runtime.info("nap").await,
        Err(RuntimeError::NotFound { .. })
    ));

    use BoxChange::{Created, Removed, Started, Starting, Stopped};
    assert_eq!(
        changes_up_to(&mut events, Removed).await,
        [
            Created, Starting, Started, Stopped, Starting, Started, Stopped, Removed
        ]
    );
}

#[tokio::test]
async fn a_forced_removal_of_a_running_box_leaves_no_zombie() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let refused = runtime.remove(&bx.id, Removal::Ended).await;
    assert!(matches!(refused, Err(RuntimeError::Running { .. })));
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
    assert!(is_gone(bx.pid.unwrap()) && is_gone(bx.payload_pid.unwrap()));
    assert!(!box_dir(&home, &bx.id).exists());
}

#[tokio::test]
async fn a_forced_removal_ends_a_payload_that_ignores_signals_and_a_stopped_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let ignores_signals = start_box(
        &runtime,
        script("trap '' TERM INT HUP; while :; do sleep 1; done"),
    )
    .await;
    let stopped_shim = start_box(&runtime, sleeping()).await;
    common::kill(stopped_shim.pid.unwrap(), nix::sys::signal::Signal::SIGSTOP);
    for bx in [ignores_signals, stopped_shim] {
        runtime.remove(&bx.id, Removal::Force).await.unwrap();
        assert!(is_gone(bx.pid.unwrap()));
        common::eventually("the payload exits", || is_gone(bx.payload_pid.unwrap())).await;
    }
}

#[tokio::test]
async fn a_stop_kills_a_payload_after_its_grace_period() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let exits_on_sigterm = "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done";
    let bx = start_box(&runtime, script(exits_on_sigterm)).await;
    wait_for_console(&home, &bx.id).await;
    let stopped = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.exit_code),
        (BoxStatus::Stopped, Some(7))
    );

    let spec = ignores_sigterm().stop_grace(Duration::from_millis(50));
    let bx = start_box(&runtime, spec).await;
    wait_for_console(&home, &bx.id).await;
    let stopped = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!(stopped.ending, Some(Ending::Signaled { signal: 9 }));
    runtime.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_stop_can_override_the_grace_period() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = ignores_sigterm().stop_grace(Duration::from_secs(3600));
    let bx = start_box(&runtime, spec).await;
    wait_for_console(&home, &bx.id).await;
    let grace = Duration::from_millis(50);
    let stopped = runtime.stop_within(&bx.id, grace).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!(stopped.ending, Some(Ending::Signaled { signal: 9 }));
    // The command also ignores SIGTERM while it sleeps.
    let slow = script("trap 'sleep 0.5; exit 7' TERM; echo up; while :; do sleep 0.05; done")
        .stop_grace(Duration::ZERO);
    let bx = start_box(&runtime, slow).await;
    wait_for_console(&home, &bx.id).await;
    let grace = Duration::from_secs(60);
    let stopped = runtime.stop_within(&bx.id, grace).await.unwrap();
    assert_eq!(stopped.ending, Some(Ending::Exited { code: 7 }));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_one_with_a_longer_grace_period() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, ignores_sigterm()).await;
    wait_for_console(&home, &bx.id).await;
    let slow = runtime.stop_within(&bx.id, Duration::from_secs(3600));
    let fast = async {
        let grace = Duration::from_millis(50);
        runtime.stop_within(&bx.id, grace).await
    };
    let (slow, fast) = tokio::join!(slow, fast);
    assert_eq!(slow.unwrap().status, BoxStatus::Stopped);
    assert_eq!(fast.unwrap().status, BoxStatus::Stopped);
}

/// The shim cannot record that it was asked to stop, but the VMM runtime knows.
#[tokio::test]
async fn a_box_whose_shim_was_killed_during_a_stop_is_stopped() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = sleeping().stop_grace(Duration::from_millis(50));
    let bx = start_box(&runtime, spec).await;
    common::kill(bx.pid.unwrap(), nix::sys::signal::Signal::SIGSTOP);
    let stopped = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(9))
    );
}

async fn wait_for_console(home: &PerTestBoxHome, id: &str) {
    let console = box_dir(home, id).join("console.log");
    common::eventually("the payload prints its first line", || {
        std::fs::read_to_string(&console).is_ok_and(|text| text.contains("up"))
    })
    .await;
}

#[tokio::test]
async fn a_box_stops_or_fails_by_the_exit_code_of_its_payload() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for (code, status) in [(0, BoxStatus::Stopped), (3, BoxStatus::Failed)] {
        let running = start_box(&runtime, exits_on_go(code)).await;
        send_go(&home, &running.id);
        let ended = runtime.wait(&running.id).await.unwrap();
        assert_eq!((ended.status, ended.exit_code), (status, Some(code)));
        assert_eq!(ended.error.is_some(), status == BoxStatus::Failed);
    }
    let bx = start_box(&runtime, script("exit 4")).await;
    let ended = wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    assert_eq!(ended.exit_code, Some(4));
}

#[tokio::test]
async fn repeated_starts_and_stops_succeed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = runtime.create(sleeping()).await.unwrap();
    let idle = runtime.stop(&bx.id).await.unwrap();
    assert_eq!(idle.status, BoxStatus::Configured);
    let first = runtime.start(&bx.id).await.unwrap();
    let again = runtime.start(&bx.id).await.unwrap();
    assert_eq!(first.pid, again.pid);
    runtime.stop(&bx.id).await.unwrap();
    runtime.stop(&bx.id).await.unwrap();
    assert_eq!(runtime.metrics().await.boxes_stopped_total, 1);
}

#[tokio::test]
async fn names_and_ids_are_unique_and_both_address_a_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let first = runtime.create(sleeping().name("web")).await.unwrap();
    for taken in ["web", &first.id] {
        match runtime.create(sleeping().name(taken)).await {
            Err(RuntimeError::NameTaken { name, id }) => {
                assert_eq!((name.as_str(), &id), (taken, &first.id));
            }
            other => panic!("{other:?}"),
        }
    }
    let invalid = runtime.create(sleeping().name("../web")).await;
    assert!(matches!(invalid, Err(RuntimeError::InvalidName { .. })));
    let second = runtime.create(sleeping()).await.unwrap();
    assert!(first.id < second.id);
    assert_eq!(runtime.info("web").await.unwrap().id, first.id);
    let listed: Vec<_> = runtime.list().await.into_iter().map(|i| i.id).collect();
    assert_eq!(listed, [first.id.clone(), second.id]);
    runtime.remove("web", Removal::Ended).await.unwrap();
    runtime.create(sleeping().name("web")).await.unwrap();
}

#[tokio::test]
async fn a_new_runtime_finds_the_box_unchanged() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = runtime
        .create(exits_on_go(5).name("keeper").label("team", "a"))
        .await
        .unwrap();
    runtime.start(&bx.id).await.unwrap();
    send_go(&home, &bx.id);
    let before = runtime.wait("keeper").await.unwrap();
    runtime.shutdown(Duration::from_secs(10)).await;
    let runtime = open_runtime(&home).await;
    let mut after = runtime.info("keeper").await.unwrap();
    after.started_at = before.started_at;
    assert_eq!(after, before);
    assert_eq!(after.labels["team"], "a");
}
