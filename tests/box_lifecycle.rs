//! What a user does with boxes, one after the other.

mod common;

use std::time::Duration;

use common::boxes::{
    changes_up_to, dir_of, exits_on_go, go, open, script, sleeping, started, until,
};
use common::{is_gone, state_of};
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, Ending, RuntimeError};

#[tokio::test]
async fn a_box_is_created_started_stopped_restarted_and_removed() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let mut events = runtime.events();

    let made = runtime.create(sleeping().name("nap")).await.unwrap();
    assert_eq!(made.status, BoxStatus::Configured);
    assert_eq!((made.pid, made.exit_code), (None, None));

    let first = runtime.start("nap").await.unwrap();
    assert_eq!((first.status, &first.id), (BoxStatus::Running, &made.id));
    let (shim, payload) = (first.pid.unwrap(), first.payload_pid.unwrap());
    assert!(matches!(state_of(shim), Some('S' | 'R')));
    assert!(matches!(state_of(payload), Some('S' | 'R' | 'D')));

    let stopped = runtime.stop(&made.id).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!((stopped.exit_code, stopped.signal), (Some(143), Some(15)));
    assert_eq!((stopped.pid, stopped.error), (None, None));
    assert!(is_gone(shim) && is_gone(payload));

    let second = runtime.start("nap").await.unwrap();
    assert_eq!((second.exit_code, second.signal), (None, None));
    assert_ne!(second.pid, first.pid);
    runtime.stop("nap").await.unwrap();
    runtime.remove("nap", false).await.unwrap();
    assert!(!dir_of(&home, &made.id).exists());
    assert!(runtime.list().await.is_empty());
    assert!(matches!(
        runtime.info("nap").await,
        Err(RuntimeError::NotFound { .. })
    ));

    use BoxChange::{Created, Removed, Started, Stopped};
    assert_eq!(
        changes_up_to(&mut events, Removed).await,
        [Created, Started, Stopped, Started, Stopped, Removed]
    );
}

#[tokio::test]
async fn removing_an_active_box_by_force_leaves_no_zombie() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    let refused = runtime.remove(&running.id, false).await;
    assert!(matches!(refused, Err(RuntimeError::Running { .. })));
    runtime.remove(&running.id, true).await.unwrap();
    assert!(is_gone(running.pid.unwrap()) && is_gone(running.payload_pid.unwrap()));
    assert!(!dir_of(&home, &running.id).exists());
}

#[tokio::test]
async fn force_ends_a_payload_that_ignores_every_request_and_a_shim_that_is_stopped() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let deaf = started(
        &runtime,
        script("trap '' TERM INT HUP; while :; do sleep 1; done"),
    )
    .await;
    let frozen = started(&runtime, sleeping()).await;
    common::kill(frozen.pid.unwrap(), nix::sys::signal::Signal::SIGSTOP);
    for running in [deaf, frozen] {
        runtime.remove(&running.id, true).await.unwrap();
        assert!(is_gone(running.pid.unwrap()));
        common::eventually("the end of the payload", || {
            is_gone(running.payload_pid.unwrap())
        })
        .await;
    }
}

#[tokio::test]
async fn a_stop_gives_the_payload_its_grace_and_then_kills_it() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let tidy = "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done";
    let polite = started(&runtime, script(tidy)).await;
    wait_for_console(&home, &polite.id).await;
    let stopped = runtime.stop(&polite.id).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.exit_code),
        (BoxStatus::Stopped, Some(7))
    );

    let deaf = "trap '' TERM; echo up; while :; do sleep 0.01; done";
    let deaf = script(deaf).stop_grace(Duration::from_millis(50));
    let deaf = started(&runtime, deaf).await;
    wait_for_console(&home, &deaf.id).await;
    let stopped = runtime.stop(&deaf.id).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!(stopped.ending, Some(Ending::Signaled { signal: 9 }));
    runtime.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_stop_can_bring_a_grace_of_its_own() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let deaf = script("trap '' TERM; echo up; while :; do sleep 0.01; done");
    let deaf = started(&runtime, deaf.stop_grace(Duration::from_secs(3600))).await;
    wait_for_console(&home, &deaf.id).await;
    let grace = Duration::from_millis(50);
    let stopped = runtime.stop_within(&deaf.id, grace).await.unwrap();
    assert_eq!(stopped.status, BoxStatus::Stopped);
    assert_eq!(stopped.ending, Some(Ending::Signaled { signal: 9 }));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_one_that_is_more_patient() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let deaf = script("trap '' TERM; echo up; while :; do sleep 0.01; done");
    let deaf = started(&runtime, deaf).await;
    wait_for_console(&home, &deaf.id).await;
    let patient = runtime.stop_within(&deaf.id, Duration::from_secs(3600));
    let impatient = async {
        let grace = Duration::from_millis(50);
        runtime.stop_within(&deaf.id, grace).await
    };
    let (patient, impatient) = tokio::join!(patient, impatient);
    assert_eq!(patient.unwrap().status, BoxStatus::Stopped);
    assert_eq!(impatient.unwrap().status, BoxStatus::Stopped);
}

/// It cannot put on record that it was asked to, but the runtime knows.
#[tokio::test]
async fn a_shim_that_has_to_be_killed_in_a_stop_has_been_stopped() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let spec = sleeping().stop_grace(Duration::from_millis(50));
    let frozen = started(&runtime, spec).await;
    common::kill(frozen.pid.unwrap(), nix::sys::signal::Signal::SIGSTOP);
    let stopped = runtime.stop(&frozen.id).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.signal),
        (BoxStatus::Stopped, Some(9))
    );
}

async fn wait_for_console(home: &PerTestBoxHome, id: &str) {
    let console = dir_of(home, id).join("console.log");
    common::eventually("the payload's first line", || {
        std::fs::read_to_string(&console).is_ok_and(|text| text.contains("up"))
    })
    .await;
}

#[tokio::test]
async fn a_payload_that_ends_by_itself_has_stopped_or_failed_by_its_code() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    for (code, status) in [(0, BoxStatus::Stopped), (3, BoxStatus::Failed)] {
        let running = started(&runtime, exits_on_go(code)).await;
        go(&home, &running.id);
        let ended = runtime.wait(&running.id).await.unwrap();
        assert_eq!((ended.status, ended.exit_code), (status, Some(code)));
        assert_eq!(ended.error.is_some(), status == BoxStatus::Failed);
    }
    let gone_at_once = started(&runtime, script("exit 4")).await;
    let ended = until(&runtime, &gone_at_once.id, BoxStatus::Failed).await;
    assert_eq!(ended.exit_code, Some(4));
}

#[tokio::test]
async fn what_is_done_already_is_no_error() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let made = runtime.create(sleeping()).await.unwrap();
    let idle = runtime.stop(&made.id).await.unwrap();
    assert_eq!(idle.status, BoxStatus::Configured);
    let first = runtime.start(&made.id).await.unwrap();
    let again = runtime.start(&made.id).await.unwrap();
    assert_eq!(first.pid, again.pid);
    runtime.stop(&made.id).await.unwrap();
    runtime.stop(&made.id).await.unwrap();
    assert_eq!(runtime.metrics().await.boxes_stopped_total, 1);
}

#[tokio::test]
async fn names_and_ids_are_unique_and_both_find_a_box() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
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
    runtime.remove("web", false).await.unwrap();
    runtime.create(sleeping().name("web")).await.unwrap();
}

#[tokio::test]
async fn a_box_is_found_again_as_it_was() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let made = runtime
        .create(exits_on_go(5).name("keeper").label("team", "a"))
        .await
        .unwrap();
    runtime.start(&made.id).await.unwrap();
    go(&home, &made.id);
    let before = runtime.wait("keeper").await.unwrap();
    runtime.shutdown(Duration::from_secs(10)).await;
    let runtime = open(&home).await;
    let mut after = runtime.info("keeper").await.unwrap();
    after.started_at = before.started_at;
    assert_eq!(after, before);
    assert_eq!(after.labels["team"], "a");
}
