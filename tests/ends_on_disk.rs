//! How a box ended is on disk before it is reported, and is not forgotten.

mod common;

use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use common::boxes::{
    changes_up_to, dir_of, open, script, sleeping, started, stray_of, until, until_info,
};
use common::frozen::Frozen;
use common::own_process::{block_on, in_own_process, use_up_descriptors};
use common::{Doomed, eventually, is_gone, is_zombie, kill, sleeper};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxChange, BoxStatus, Ending};

const LIMIT: Duration = Duration::from_secs(60);

/// A field of its `box.json`.
fn on_disk(home: &PerTestBoxHome, id: &str, field: &str) -> serde_json::Value {
    let text = fs::read(dir_of(home, id).join("box.json")).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&text).unwrap();
    record[field].take()
}

/// `None` on a host without the v1 freezer, after a note on stderr.
fn freeze(pid: u32) -> Option<Frozen> {
    let frozen = Frozen::freeze(pid);
    if let Err(error) = &frozen {
        let _ = writeln!(io::stderr(), "SKIPPED, in part: {error}");
    }
    frozen.ok()
}

#[tokio::test]
async fn an_end_is_on_disk_when_its_event_comes() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let mut events = runtime.events();
    for _ in 0..30 {
        let running = started(&runtime, sleeping()).await;
        kill(running.pid.unwrap(), Signal::SIGKILL);
        changes_up_to(&mut events, BoxChange::Failed).await;
        assert_eq!(on_disk(&home, &running.id, "last")["status"], "failed");
        runtime.remove(&running.id, true).await.unwrap();
    }
}

#[tokio::test]
async fn an_end_is_on_disk_when_it_is_shown() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    for round in 0..60 {
        let running = started(&runtime, sleeping()).await;
        kill(running.pid.unwrap(), Signal::SIGKILL);
        match round % 3 {
            0 => _ = runtime.wait(&running.id).await.unwrap(),
            1 => _ = until(&runtime, &running.id, BoxStatus::Failed).await,
            _ => loop {
                let list = runtime.list().await;
                if list.iter().all(|info| info.status == BoxStatus::Failed) {
                    break;
                }
            },
        }
        assert_eq!(
            on_disk(&home, &running.id, "last")["status"],
            "failed",
            "{round}"
        );
        runtime.remove(&running.id, true).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_start_is_on_disk_when_its_event_comes() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let mut events = runtime.events();
    for _ in 0..20 {
        let spec = vmm_runtime::BoxSpec::new(["/there-is-no-such-program"]);
        let id = runtime.create(spec).await.unwrap().id;
        let start = tokio::spawn({
            let (runtime, id) = (runtime.clone(), id.clone());
            async move { runtime.start(&id).await }
        });
        changes_up_to(&mut events, BoxChange::Failed).await;
        assert_eq!(on_disk(&home, &id, "last")["status"], "failed");
        start.await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn an_end_survives_a_restart_although_its_cleanup_is_not_done() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    let payload = running.payload_pid.unwrap();
    let Some(frozen) = freeze(payload) else {
        return;
    };
    // It cannot succeed: the payload does not die.
    let _ = runtime.stop_within(&running.id, Duration::ZERO).await;
    let ended = runtime.info(&running.id).await.unwrap();
    assert_eq!(
        (ended.status, ended.exit_code),
        (BoxStatus::Stopped, Some(137))
    );
    runtime.shutdown(LIMIT).await;
    let runtime = open(&home).await;
    let found = runtime.info(&running.id).await.unwrap();
    assert_eq!(
        (found.status, found.exit_code),
        (ended.status, ended.exit_code)
    );
    frozen.thaw();
    eventually("the end of the payload", || is_gone(payload)).await;
}

#[tokio::test]
async fn the_next_runtime_resumes_a_cleanup() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let away = "cd $VMM_BOX_DIR; setsid sh -c 'echo $$ > stray; exec sleep 1000' & wait";
    let running = started(&runtime, script(away)).await;
    let orphan = stray_of(&home, &running.id).await;
    let Some(frozen) = freeze(orphan) else {
        return;
    };
    kill(running.pid.unwrap(), Signal::SIGKILL);
    until(&runtime, &running.id, BoxStatus::Failed).await;
    runtime.shutdown(LIMIT).await;
    assert_eq!(on_disk(&home, &running.id, "cleanup_due"), true);
    // One that the first runtime has not met.
    let mut doomed = Doomed::default();
    let mut other = sleeper();
    other.env("VMM_BOX_DIR", dir_of(&home, &running.id));
    let other = doomed.spawn(other).unwrap();
    let runtime = open(&home).await;
    let found = runtime.info(&running.id).await.unwrap();
    assert_eq!(found.ending, Some(Ending::Signaled { signal: 9 }));
    eventually("the end of the other", || {
        is_zombie(other) || is_gone(other)
    })
    .await;
    frozen.thaw();
    eventually("the end of the orphan", || is_gone(orphan)).await;
    eventually("the cleanup is done", || {
        on_disk(&home, &running.id, "cleanup_due").is_null()
    })
    .await;
    runtime.start(&running.id).await.unwrap();
    runtime.remove(&running.id, true).await.unwrap();
}

#[tokio::test]
async fn a_cleanup_waits_for_what_takes_long_to_die() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let away = "cd $VMM_BOX_DIR; setsid sh -c 'echo $$ > stray; exec sleep 1000' & wait";
    let running = started(&runtime, script(away)).await;
    let orphan = stray_of(&home, &running.id).await;
    let Some(frozen) = freeze(orphan) else {
        return;
    };
    kill(running.pid.unwrap(), Signal::SIGKILL);
    let remove = tokio::spawn({
        let (runtime, id) = (runtime.clone(), running.id.clone());
        async move { runtime.remove(&id, true).await }
    });
    tokio::time::sleep(Duration::from_secs(6)).await;
    frozen.thaw();
    remove.await.unwrap().unwrap();
    eventually("the end of the orphan", || is_gone(orphan)).await;
}

#[tokio::test]
async fn a_shim_records_the_end_of_a_payload_that_takes_long_to_die() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    let Some(frozen) = freeze(running.payload_pid.unwrap()) else {
        return;
    };
    let stop = tokio::spawn({
        let (runtime, id) = (runtime.clone(), running.id.clone());
        async move { runtime.stop_within(&id, Duration::ZERO).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    frozen.thaw();
    stop.await.unwrap().unwrap();
    assert!(dir_of(&home, &running.id).join("exit").exists());
}

#[test]
fn an_end_is_not_saved_before_its_record_can_be_read() {
    in_own_process("an_end_is_not_saved_before_its_record_can_be_read", || {
        block_on(ends_without_descriptors())
    });
}

async fn ends_without_descriptors() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(&runtime, sleeping()).await;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    // The shim records it, and ends with 128 + 15.
    kill(running.payload_pid.unwrap(), Signal::SIGTERM);
    // What the kernel reports is shown meanwhile.
    let shown = until(&runtime, &running.id, BoxStatus::Failed).await;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(shown.exit_code, Some(143));
    let by_sigterm = Some(Ending::Signaled { signal: 15 });
    let settled = tokio::time::timeout(
        Duration::from_secs(20),
        until_info(&runtime, &running.id, |info| info.ending == by_sigterm),
    );
    settled.await.unwrap();
    runtime.shutdown(LIMIT).await;
    let runtime = open(&home).await;
    let found = runtime.info(&running.id).await.unwrap();
    assert_eq!(found.ending, by_sigterm);
}

#[test]
fn a_removal_that_failed_for_want_of_descriptors_is_finished_by_the_next() {
    in_own_process(
        "a_removal_that_failed_for_want_of_descriptors_is_finished_by_the_next",
        || block_on(removes_without_descriptors()),
    );
}

async fn removes_without_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 128, hard).unwrap();
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let ended = started(&runtime, script("exit 0")).await;
    runtime.wait(&ended.id).await.unwrap();
    let boxes = home.path().join("boxes");
    let taken = use_up_descriptors();
    // It may fail before or after the directory is set aside, or not at all.
    let _ = runtime.remove(&ended.id, true).await;
    drop(taken);
    let _ = runtime.remove(&ended.id, true).await;
    eventually("the end of its files", || {
        fs::read_dir(&boxes).unwrap().count() == 0
    })
    .await;
    runtime.shutdown(Duration::from_secs(60)).await;
}
