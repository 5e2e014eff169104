//! Restart policies and the automatic removal of boxes.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::task::Poll;
use std::time::Duration;

use common::boxes::{
    box_dir, exits_on_go, in_two_processes, next_event, open_runtime, options, remove_all, script,
    send_go, sleeping, start_box, wait_for_info, wait_for_status,
};
use common::own_process::block_on;
use common::{DEADLINE, eventually, kill};
use futures::{StreamExt, poll};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxChange, BoxEvent, BoxInfo, BoxSpec, BoxStatus, Events, Ready, Removal, RestartPolicy,
    RuntimeError, VmmRuntime,
};

const ON_FAILURE: RestartPolicy = RestartPolicy::OnFailure { max: None };

/// Waits until the box runs in another shim than `before`.
async fn wait_for_restart(runtime: &VmmRuntime, before: &BoxInfo) -> BoxInfo {
    let is_restarted = |info: &BoxInfo| info.status == BoxStatus::Running && info.pid != before.pid;
    wait_for_info(runtime, &before.id, is_restarted).await
}

/// Returns a spec whose payload counts its runs in the file `runs`, and then runs `rest`.
fn counting(rest: &str) -> BoxSpec {
    script(&format!("echo >> $VMM_BOX_DIR/runs; {rest}"))
}

fn runs(home: &PerTestBoxHome, id: &str) -> usize {
    fs::read(box_dir(home, id).join("runs"))
        .unwrap_or_default()
        .len()
}

#[tokio::test]
async fn a_box_that_fails_is_restarted_and_its_events_show_it() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut events = runtime.events();
    let first = start_box(&runtime, sleeping().restart(ON_FAILURE)).await;
    kill(first.pid.unwrap(), Signal::SIGKILL);
    let second = wait_for_restart(&runtime, &first).await;
    assert_eq!((second.restarts, second.restarting), (1, false));
    assert_eq!(second.restart_policy, ON_FAILURE);
    assert_eq!(runtime.metrics().await.boxes_restarted_total, 1);
    let mut changes = Vec::new();
    for _ in 0..6 {
        let event = next_event(&mut events).await;
        changes.push((event.change, event.info.restarting));
    }
    assert_eq!(
        changes,
        [
            (BoxChange::Created, false),
            (BoxChange::Starting, false),
            (BoxChange::Started, false),
            (BoxChange::Failed, true),
            (BoxChange::Starting, true),
            (BoxChange::Started, false),
        ]
    );
    remove_all(&runtime).await;
}

#[tokio::test]
async fn the_policy_decides_which_ends_are_followed_by_a_restart() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for (policy, code, is_restarted) in [
        (RestartPolicy::No, 1, false),
        (ON_FAILURE, 0, false),
        (ON_FAILURE, 1, true),
        (RestartPolicy::Always, 0, true),
        (RestartPolicy::UnlessStopped, 0, true),
    ] {
        let first = start_box(&runtime, exits_on_go(code).restart(policy)).await;
        send_go(&home, &first.id);
        let ended = runtime.wait(&first.id).await.unwrap();
        assert_eq!(ended.restarts, u32::from(is_restarted), "{policy} {code}");
        if is_restarted {
            wait_for_info(&runtime, &first.id, |info| info.restarts >= 2).await;
        } else {
            assert!(!ended.restarting, "{policy} {code}");
        }
    }
    remove_all(&runtime).await;
}

#[tokio::test]
async fn on_failure_gives_up_after_max_restarts_until_a_user_starts_the_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let policy = RestartPolicy::OnFailure { max: Some(2) };
    let bx = runtime
        .create(counting("exit 3").restart(policy))
        .await
        .unwrap();
    for attempts in [3, 6] {
        runtime.start(&bx.id).await.unwrap();
        let gave_up = |info: &BoxInfo| {
            info.status == BoxStatus::Failed && info.restarts == 2 && !info.restarting
        };
        let ended = wait_for_info(&runtime, &bx.id, gave_up).await;
        assert_eq!((ended.exit_code, runs(&home, &bx.id)), (Some(3), attempts));
    }
}

#[tokio::test]
async fn a_first_start_that_fails_is_not_repeated_but_a_failed_restart_is() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let missing = BoxSpec::new(["/missing"]).restart(RestartPolicy::Always);
    let id = runtime.create(missing).await.unwrap().id;
    let refused = runtime.start(&id).await;
    assert!(
        matches!(refused, Err(RuntimeError::Start { .. })),
        "{refused:?}"
    );
    let info = runtime.info(&id).await.unwrap();
    assert_eq!((info.restarts, info.restarting), (0, false));

    let program = home.path().join("program");
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    let spec = BoxSpec::new([program.to_str().unwrap(), "1000"]).restart(RestartPolicy::Always);
    let first = start_box(&runtime, spec).await;
    fs::remove_file(&program).unwrap();
    kill(first.pid.unwrap(), Signal::SIGKILL);
    wait_for_info(&runtime, &first.id, |info| info.restarts >= 3).await;
    std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
    wait_for_restart(&runtime, &first).await;
    remove_all(&runtime).await;
}

/// Returns the latest of the events that are not read yet.
async fn last_event(events: &mut Events) -> Option<BoxEvent> {
    let mut last = None;
    while let Poll::Ready(Some(event)) = poll!(events.next()) {
        last = Some(event);
    }
    last
}

#[tokio::test]
async fn a_stop_ends_the_restarts_whenever_it_comes() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut events = runtime.events();
    let looping = counting("exit 1").restart(RestartPolicy::Always);
    let id = start_box(&runtime, looping).await.id;
    for pause in 0..20 {
        // Anywhere between two runs, or in one of them.
        tokio::time::sleep(Duration::from_millis(7 * pause)).await;
        let stopped = runtime.stop(&id).await.unwrap();
        assert!(!stopped.restarting && stopped.pid.is_none(), "{stopped:?}");
        let last = last_event(&mut events).await.unwrap();
        assert_eq!(last.info, stopped, "{last:?}");
        let count = runs(&home, &id);
        // Longer than the delay of the first two restarts, which is as many as a pause has.
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(runs(&home, &id), count);
        runtime.start(&id).await.unwrap();
    }
    runtime.remove(&id, Removal::Force).await.unwrap();
    let running = start_box(&runtime, sleeping().restart(RestartPolicy::Always)).await;
    let stopped = runtime.stop(&running.id).await.unwrap();
    assert_eq!(
        (stopped.status, stopped.restarting),
        (BoxStatus::Stopped, false)
    );
    // A restart of a box that the user starts in the meantime is not due any more.
    let looping = runtime.start(&running.id).await.unwrap();
    assert_eq!(looping.restarts, 0);
    remove_all(&runtime).await;
}

#[tokio::test]
async fn a_start_and_a_stop_are_saved_when_they_return() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = sleeping().restart(RestartPolicy::UnlessStopped);
    let id = runtime.create(spec).await.unwrap().id;
    let assert_saved = |state: &str| {
        let record = fs::read_to_string(box_dir(&home, &id).join("box.json")).unwrap();
        assert!(record.contains(state), "no {state}: {record}");
    };
    for _ in 0..2 {
        runtime.start(&id).await.unwrap();
        assert_saved(r#""started": true"#);
        assert_saved(r#""stopped": false"#);
        runtime.stop(&id).await.unwrap();
        assert_saved(r#""stopped": true"#);
    }
    remove_all(&runtime).await;
}

#[tokio::test]
async fn a_stop_that_cannot_be_saved_fails_and_is_saved_later() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let looping = script("exit 1").restart(ON_FAILURE);
    let running = sleeping().restart(RestartPolicy::UnlessStopped);
    let boxes = [
        start_box(&runtime, looping).await.id,
        start_box(&runtime, running).await.id,
    ];
    for id in &boxes {
        // Not even root can write to a directory as to a file.
        let obstacle = box_dir(&home, id).join(".box.json.tmp");
        // A save may be in progress.
        eventually("the obstacle is there", || {
            fs::create_dir(&obstacle).is_ok()
        })
        .await;
        for _ in 0..2 {
            let refused = runtime.stop(id).await;
            let Err(RuntimeError::File(error)) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(error.path, box_dir(&home, id).join("box.json"));
        }
        let stopped = runtime.info(id).await.unwrap();
        assert!(stopped.pid.is_none() && !stopped.restarting, "{stopped:?}");
        fs::remove_dir(&obstacle).unwrap();
        let record = box_dir(&home, id).join("box.json");
        let is_saved = || {
            let text = fs::read_to_string(&record).unwrap();
            text.contains(r#""stopped": true"#) && text.contains(r#""due": false"#)
        };
        eventually("the stop is saved", is_saved).await;
        runtime.stop(id).await.unwrap();
    }
    remove_all(&runtime).await;
}

#[tokio::test]
async fn an_event_shows_that_a_stop_has_cancelled_a_restart() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut events = runtime.events();
    let id = start_box(&runtime, script("exit 1").restart(ON_FAILURE))
        .await
        .id;
    // Its next restart follows after 3.2 s.
    let waits = |info: &BoxInfo| info.restarts == 6 && info.restarting && info.pid.is_none();
    wait_for_info(&runtime, &id, waits).await;
    let before = last_event(&mut events).await.unwrap();
    assert_eq!(
        (before.change, before.info.restarting),
        (BoxChange::Failed, true)
    );
    runtime.stop(&id).await.unwrap();
    let after = next_event(&mut events).await;
    assert_eq!(
        (after.change, after.info.restarting),
        (BoxChange::Cancelled, false)
    );
    assert_eq!(after.info.status, BoxStatus::Failed);
    // A box that does not wait for a restart has no such event.
    runtime.stop(&id).await.unwrap();
    assert_eq!(last_event(&mut events).await, None);
}

#[tokio::test]
async fn a_box_that_waits_for_its_restart_can_be_removed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let mut events = runtime.events();
    let id = start_box(&runtime, counting("exit 1").restart(ON_FAILURE))
        .await
        .id;
    wait_for_info(&runtime, &id, |info| info.restarts >= 2).await;
    runtime.remove(&id, Removal::Force).await.unwrap();
    assert!(!box_dir(&home, &id).exists());
    let last = last_event(&mut events).await.unwrap();
    assert_eq!(
        (last.change, last.info.restarting),
        (BoxChange::Removed, false)
    );
    let again = runtime.create(sleeping()).await.unwrap();
    assert_eq!(runtime.list().await, [again]);
}

#[tokio::test]
async fn a_shutdown_leaves_to_the_next_runtime_what_the_policy_restarts() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let policies = [
        ("no", RestartPolicy::No),
        ("on-failure", ON_FAILURE),
        ("always", RestartPolicy::Always),
        ("unless-stopped", RestartPolicy::UnlessStopped),
    ];
    for (name, policy) in policies {
        start_box(&runtime, sleeping().name(name).restart(policy)).await;
        let stopped = format!("{name}-stopped");
        start_box(&runtime, sleeping().name(&stopped).restart(policy)).await;
        runtime.stop(&stopped).await.unwrap();
    }
    let never_started = sleeping().name("new").restart(RestartPolicy::Always);
    runtime.create(never_started).await.unwrap();
    runtime.shutdown(DEADLINE).await;

    let runtime = open_runtime(&home).await;
    for name in ["always", "unless-stopped", "always-stopped"] {
        wait_for_status(&runtime, name, BoxStatus::Running).await;
    }
    for name in ["no", "on-failure", "unless-stopped-stopped", "new"] {
        let info = runtime.info(name).await.unwrap();
        assert!(info.pid.is_none() && !info.restarting, "{info:?}");
    }
    remove_all(&runtime).await;
}

#[test]
fn restarts_survive_a_kill_of_the_runtime() {
    in_two_processes(
        "restarts_survive_a_kill_of_the_runtime",
        |options| {
            block_on(async {
                let runtime = VmmRuntime::open(options).await.unwrap();
                let always = RestartPolicy::UnlessStopped;
                start_box(&runtime, sleeping().name("running").restart(always)).await;
                // Stopped, started again, and killed at once.
                start_box(&runtime, sleeping().name("again").restart(always)).await;
                runtime.stop("again").await.unwrap();
                runtime.start("again").await.unwrap();
                start_box(&runtime, sleeping().name("stopped").restart(always)).await;
                runtime.stop("stopped").await.unwrap();
                let looping = script("exit 1").name("looping").restart(ON_FAILURE);
                start_box(&runtime, looping).await;
                let gone = |info: &BoxInfo| info.restarts >= 4 && info.restarting;
                wait_for_info(&runtime, "looping", gone).await;
                kill(std::process::id(), Signal::SIGKILL);
            });
        },
        |home, first| {
            assert_eq!(first.status.signal(), Some(9), "{first:?}");
            block_on(async {
                let runtime = VmmRuntime::open(options(home.path())).await.unwrap();
                for name in ["running", "again"] {
                    let is_restarted = |info: &BoxInfo| {
                        info.status == BoxStatus::Running && info.started_at.is_some()
                    };
                    wait_for_info(&runtime, name, is_restarted).await;
                }
                let stopped = runtime.info("stopped").await.unwrap();
                assert!(stopped.pid.is_none() && !stopped.restarting, "{stopped:?}");
                // Its number of restarts and its delay are not reset.
                wait_for_info(&runtime, "looping", |info| info.restarts >= 5).await;
                remove_all(&runtime).await;
            });
        },
    );
}

#[test]
fn a_stop_ends_the_restarts_of_a_box_whose_runtime_died_during_its_start() {
    in_two_processes(
        "a_stop_ends_the_restarts_of_a_box_whose_runtime_died_during_its_start",
        |options| {
            block_on(async {
                let runtime = VmmRuntime::open(options).await.unwrap();
                let text = "[ -e $VMM_BOX_DIR/runs ] || kill -9 $RUNTIME; echo >> $VMM_BOX_DIR/runs; \
                            exec sleep 60";
                let spec = script(text)
                    .name("killer")
                    .env("RUNTIME", std::process::id().to_string())
                    .ready(Ready::Notified)
                    .restart(RestartPolicy::UnlessStopped);
                let _ = start_box(&runtime, spec).await;
            });
        },
        |home, first| {
            assert_eq!(first.status.signal(), Some(9), "{first:?}");
            block_on(async {
                let runtime = VmmRuntime::open(options(home.path())).await.unwrap();
                wait_for_info(&runtime, "killer", |info| info.restarting).await;
                let stopped = runtime.stop("killer").await.unwrap();
                assert!(stopped.pid.is_none() && !stopped.restarting, "{stopped:?}");
                drop(runtime);
                let runtime = VmmRuntime::open(options(home.path())).await.unwrap();
                let stopped = runtime.info("killer").await.unwrap();
                assert!(stopped.pid.is_none() && !stopped.restarting, "{stopped:?}");
                remove_all(&runtime).await;
            });
        },
    );
}

#[tokio::test]
async fn a_box_with_auto_remove_is_removed_when_it_has_ended() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, exits_on_go(7).auto_remove(true)).await;
    send_go(&home, &bx.id);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!((ended.exit_code, ended.auto_remove), (Some(7), true));
    eventually("the box is removed", || !box_dir(&home, &bx.id).exists()).await;
    // A box that was never started has not ended.
    let kept = runtime.create(sleeping().auto_remove(true)).await.unwrap();
    runtime.shutdown(DEADLINE).await;
    drop(runtime);

    let runtime = open_runtime(&home).await;
    assert_eq!(runtime.list().await, std::slice::from_ref(&kept));
    runtime.start(&kept.id).await.unwrap();
    runtime.shutdown(DEADLINE).await;
    drop(runtime);
    let runtime = open_runtime(&home).await;
    eventually("the box that the shutdown has ended is removed", || {
        !box_dir(&home, &kept.id).exists()
    })
    .await;
    let both = sleeping().auto_remove(true).restart(RestartPolicy::Always);
    let refused = runtime.create(both).await;
    assert!(
        matches!(refused, Err(RuntimeError::RestartOfRemoved { .. })),
        "{refused:?}"
    );
}
