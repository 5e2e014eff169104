//! A payload can write to its box directory. Files that it forges there neither hide its ending nor
//! keep its processes alive.

mod common;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::boxes::{
    box_dir, exits_on_go, open_runtime, orphan_of, script, send_go, sleeping, start_box,
    wait_for_status,
};
use common::{eventually, is_gone, kill};
use nix::sys::signal::Signal;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxSpec, BoxStatus, ControlGroup, Ending, PidRecord, Ready, Removal, RuntimeError, StartError,
};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts an orphan outside the session and the environment of the payload. Only its control group
/// identifies it.
const HIDDEN_ORPHAN: &str = "cd $VMM_BOX_DIR; \
    setsid env -i sh -c 'echo $$ > orphan; exec sleep 1000' & ";

/// Starts an orphan that its environment identifies.
const ORPHAN: &str = "cd $VMM_BOX_DIR; setsid sh -c 'echo $$ > orphan; exec sleep 1000' & ";

const AWAIT_GO: &str = "while [ ! -e $VMM_BOX_DIR/go ]; do sleep 0.01; done; ";

fn limited(spec: BoxSpec) -> BoxSpec {
    spec.cpus(1).memory_mib(64)
}

/// Returns whether the host has control groups, and writes a note to stderr if not.
fn has_groups() -> bool {
    let result = ControlGroup::check();
    if let Err(error) = &result {
        let _ = writeln!(io::stderr(), "SKIPPED, in part: {error}");
    }
    result.is_ok()
}

/// Returns the control groups that the shim has recorded.
fn groups_in(record: &Path) -> Vec<PathBuf> {
    let record = fs::read_to_string(record).unwrap();
    let groups: Vec<_> = record.lines().map(PathBuf::from).collect();
    assert!(!groups.is_empty() && groups.iter().all(|group| group.exists()));
    groups
}

fn assert_gone(groups: &[PathBuf]) {
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_interrupted_start_leaves_neither_orphan_nor_group() {
    if !has_groups() {
        return;
    }
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script(&format!("{HIDDEN_ORPHAN} exec sleep 1000")).ready(Ready::Notified);
    let id = runtime.create(limited(spec)).await.unwrap().id;
    let start = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.start(&id).await }
    });
    let orphan = orphan_of(&home, &id).await;
    let groups = groups_in(&box_dir(&home, &id).join("cgroup"));
    let shim = PidRecord::read(&box_dir(&home, &id).join("shim.pid"));
    // A stopped shim does not clean up.
    kill(shim.unwrap().unwrap().pid, Signal::SIGSTOP);
    runtime.stop(&id).await.unwrap();
    start.await.unwrap().unwrap_err();
    eventually("the orphan exits", || is_gone(orphan)).await;
    assert_gone(&groups);
    let info = runtime.info(&id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Configured);
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    // The next VMM runtime does not find a failed run either.
    let runtime = open_runtime(&home).await;
    let info = runtime.info(&id).await.unwrap();
    assert_eq!(info.status, BoxStatus::Configured);
}

/// Starts a payload that deletes the record of its groups. Returns the box and its groups.
async fn start_without_record(
    home: &PerTestBoxHome,
    spec: BoxSpec,
) -> (vmm_runtime::VmmRuntime, vmm_runtime::BoxInfo, Vec<PathBuf>) {
    let runtime = open_runtime(home).await;
    let bx = start_box(&runtime, limited(spec)).await;
    let dir = box_dir(home, &bx.id);
    eventually("the payload deletes the record", || {
        !dir.join("cgroup").exists()
    })
    .await;
    let groups = groups_in(&dir.join("moved"));
    (runtime, bx, groups)
}

#[tokio::test]
async fn the_shim_removes_groups_whose_record_the_payload_deleted() {
    if !has_groups() {
        return;
    }
    let home = PerTestBoxHome::new();
    let spec = script("mv $VMM_BOX_DIR/cgroup $VMM_BOX_DIR/moved; exec sleep 1000");
    let (runtime, running, groups) = start_without_record(&home, spec).await;
    runtime.stop(&running.id).await.unwrap();
    assert_gone(&groups);
}

#[tokio::test]
async fn the_runtime_finds_groups_whose_record_the_payload_deleted() {
    if !has_groups() {
        return;
    }
    let home = PerTestBoxHome::new();
    let spec = script(&format!("{HIDDEN_ORPHAN} mv cgroup moved; exec sleep 1000"));
    let (runtime, running, groups) = start_without_record(&home, spec).await;
    let orphan = orphan_of(&home, &running.id).await;
    kill(running.pid.unwrap(), Signal::SIGKILL);
    wait_for_status(&runtime, &running.id, BoxStatus::Failed).await;
    runtime.remove(&running.id, Removal::Force).await.unwrap();
    eventually("the orphan exits", || is_gone(orphan)).await;
    assert_gone(&groups);
}

#[tokio::test]
async fn the_next_runtime_finds_groups_whose_record_the_payload_deleted() {
    if !has_groups() {
        return;
    }
    let home = PerTestBoxHome::new();
    let spec = script(&format!("{HIDDEN_ORPHAN} mv cgroup moved; exec sleep 1000"));
    let (runtime, running, groups) = start_without_record(&home, spec.detached(true)).await;
    let orphan = orphan_of(&home, &running.id).await;
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    kill(running.pid.unwrap(), Signal::SIGKILL);
    eventually("the shim exits", || is_gone(running.pid.unwrap())).await;
    let runtime = open_runtime(&home).await;
    runtime.remove(&running.id, Removal::Force).await.unwrap();
    eventually("the orphan exits", || is_gone(orphan)).await;
    assert_gone(&groups);
}

/// Forges the record of a clean exit, and kills the shim.
const FORGE_END: &str = r#"
    printf '{"pid":%s,"requested":true,"how":"exited","code":0}' $PPID > $VMM_BOX_DIR/exit;
    kill -9 $PPID; sleep 1000"#;

#[tokio::test]
async fn a_forged_exit_record_does_not_hide_that_the_shim_was_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script(&format!("{ORPHAN} {AWAIT_GO} {FORGE_END}"));
    let bx = start_box(&runtime, spec).await;
    let orphan = orphan_of(&home, &bx.id).await;
    send_go(&home, &bx.id);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!(ended.status, BoxStatus::Failed, "{ended:?}");
    assert_eq!(ended.ending, Some(Ending::Signaled { signal: 9 }));
    eventually("the orphan exits", || is_gone(orphan)).await;
}

#[tokio::test]
async fn a_forged_exit_record_does_not_hide_that_a_starting_shim_was_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script(&format!("{ORPHAN} {AWAIT_GO} {FORGE_END}")).ready(Ready::Notified);
    let id = runtime.create(spec).await.unwrap().id;
    let start = tokio::spawn({
        let (runtime, id) = (runtime.clone(), id.clone());
        async move { runtime.start(&id).await }
    });
    let orphan = orphan_of(&home, &id).await;
    send_go(&home, &id);
    let error = start.await.unwrap().unwrap_err();
    let RuntimeError::Start { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(source, StartError::Ended { .. }), "{error}");
    assert_eq!(source.ending(), Some(&Ending::Signaled { signal: 9 }));
    eventually("the orphan exits", || is_gone(orphan)).await;
}

#[tokio::test]
async fn the_texts_of_a_forged_exit_record_are_truncated() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping().detached(true)).await;
    let shim = bx.pid.unwrap();
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    kill(shim, Signal::SIGKILL);
    eventually("the shim exits", || is_gone(shim)).await;
    let message = "é".repeat(200_000);
    let forged = format!(
        r#"{{"pid":{shim},"how":"panicked","message":"{message}","location":"{message}"}}"#
    );
    fs::write(box_dir(&home, &bx.id).join("exit"), forged).unwrap();
    for _ in 0..2 {
        let runtime = open_runtime(&home).await;
        let info = runtime.info(&bx.id).await.unwrap();
        assert_eq!(info.status, BoxStatus::Failed);
        let length = info.error.unwrap().len();
        assert!(length < 16 << 10, "{length}");
        let Some(Ending::Panicked { message, location }) = info.ending else {
            panic!("{:?}", info.ending);
        };
        assert!(message.starts_with('é') && message.len() <= 4 << 10);
        assert!(location.unwrap().len() <= 4 << 10);
        runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    }
}

#[tokio::test]
async fn an_orphan_of_a_dead_shim_is_killed_despite_a_forged_exit_record() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(
        &runtime,
        script(&format!("{ORPHAN} exec sleep 1000")).detached(true),
    )
    .await;
    let orphan = orphan_of(&home, &bx.id).await;
    let shim = bx.pid.unwrap();
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    kill(shim, Signal::SIGKILL);
    eventually("the shim exits", || is_gone(shim)).await;
    let forged = format!(r#"{{"pid":{shim},"requested":true,"how":"exited","code":0}}"#);
    fs::write(box_dir(&home, &bx.id).join("exit"), forged).unwrap();
    let _runtime = open_runtime(&home).await;
    eventually("the orphan exits", || is_gone(orphan)).await;
}

#[tokio::test]
async fn a_forged_pid_record_does_not_affect_the_shim_of_another_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let other = start_box(&runtime, sleeping().detached(true)).await;
    let forging = start_box(&runtime, sleeping().detached(true)).await;
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    kill(forging.pid.unwrap(), Signal::SIGKILL);
    eventually("the shim exits", || is_gone(forging.pid.unwrap())).await;
    let record = |id: &str| box_dir(&home, id).join("shim.pid");
    fs::copy(record(&other.id), record(&forging.id)).unwrap();
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&forging.id).await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Failed, None));
    runtime.remove(&forging.id, Removal::Force).await.unwrap();
    let found = runtime.info(&other.id).await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, other.pid));
    runtime.remove(&other.id, Removal::Force).await.unwrap();
}

#[tokio::test]
async fn a_reported_ending_does_not_change_after_a_restart() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let forge = r#"printf '{"pid":5}' > $VMM_BOX_DIR/shim.pid;
        printf '{"pid":5,"how":"exited","code":0}' > $VMM_BOX_DIR/exit; kill -9 $PPID; sleep 1000"#;
    let bx = start_box(&runtime, script(&format!("{AWAIT_GO} {forge}"))).await;
    send_go(&home, &bx.id);
    let ended = runtime.wait(&bx.id).await.unwrap();
    assert_eq!(ended.ending, Some(Ending::Signaled { signal: 9 }));
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!((found.status, found.ending), (ended.status, ended.ending));
}

#[tokio::test]
async fn a_record_with_symbolic_links_to_the_groups_of_another_box_is_ignored() {
    if !has_groups() {
        return;
    }
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let other = start_box(&runtime, limited(script("exec sleep 1000"))).await;
    let groups = groups_in(&box_dir(&home, &other.id).join("cgroup"));
    let limit = || {
        groups
            .iter()
            .find_map(|group| fs::read_to_string(group.join("pids.max")).ok())
    };
    let before = limit();
    let forging = start_box(&runtime, limited(script("exec sleep 1000"))).await;
    let dir = box_dir(&home, &forging.id);
    let link = |(number, group)| {
        let link = dir.join(format!("vmm-box-{}.{number}", forging.id));
        symlink(group, &link).unwrap();
        format!("{}\n", link.display())
    };
    let record: String = groups.iter().enumerate().map(link).collect();
    fs::write(dir.join("cgroup"), record).unwrap();
    kill(forging.pid.unwrap(), Signal::SIGKILL);
    wait_for_status(&runtime, &forging.id, BoxStatus::Failed).await;
    runtime.remove(&forging.id, Removal::Force).await.unwrap();
    assert_eq!(limit(), before);
    let other = runtime.info(&other.id).await.unwrap();
    assert_eq!(other.status, BoxStatus::Running);
}

#[tokio::test]
async fn a_shim_whose_records_the_payload_removed_is_found_again() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let hide = "cd $VMM_BOX_DIR; rm shim.pid shim.stderr; echo $$ > orphan; exec sleep 1000";
    let bx = start_box(&runtime, script(hide).detached(true)).await;
    let payload = orphan_of(&home, &bx.id).await;
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;

    let runtime = open_runtime(&home).await;
    let found = runtime.info(&bx.id).await.unwrap();
    assert_eq!((found.status, found.pid), (BoxStatus::Running, bx.pid));
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
    assert!(is_gone(bx.pid.unwrap()) && is_gone(payload));
}

#[tokio::test]
async fn a_payload_with_the_arguments_of_a_shim_is_not_taken_for_one() {
    if !has_groups() {
        return;
    }
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let victim = start_box(&runtime, exits_on_go(7).detached(true)).await;
    let dir = box_dir(&home, &victim.id);
    let disguise = format!(
        "cd $VMM_BOX_DIR; echo 'sleep 1000; true' > box; \
         exec bash -c 'exec -a vmm-shim sh box {} {}'",
        victim.id,
        dir.display()
    );
    let impostor = start_box(&runtime, script(&disguise).detached(true)).await;
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    send_go(&home, &victim.id);
    eventually("the end of the shim", || is_gone(victim.pid.unwrap())).await;

    let runtime = open_runtime(&home).await;
    let ended = runtime.info(&victim.id).await.unwrap();
    assert_eq!(ended.exit_code, Some(7), "{ended:?}");
    for id in [&victim.id, &impostor.id] {
        runtime.remove(id, Removal::Force).await.unwrap();
    }
}

#[tokio::test]
async fn labels_are_bounded_also_where_the_payload_has_written_them() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let many = (0..2_000).fold(sleeping(), |spec, n| spec.label(n.to_string(), "x"));
    for spec in [many, sleeping().label("large", "x".repeat(2 << 20))] {
        let refused = runtime.create(spec).await;
        assert!(
            matches!(refused, Err(RuntimeError::TooManyLabels { .. })),
            "{refused:?}"
        );
    }
    let id = runtime
        .create(sleeping().label("few", "x"))
        .await
        .unwrap()
        .id;
    runtime.shutdown(SHUTDOWN_TIMEOUT).await;
    let record = box_dir(&home, &id).join("box.json");
    let text = fs::read_to_string(&record).unwrap();
    let labels: String = (0..2_000).map(|n| format!("\"{n}\": \"x\",")).collect();
    let forged = text.replace("\"few\"", &format!("{labels} \"few\""));
    assert_ne!(forged, text);
    fs::write(&record, forged).unwrap();

    let runtime = open_runtime(&home).await;
    let damaged = runtime.info(&id).await.unwrap();
    assert_eq!(damaged.status, BoxStatus::Failed);
    assert!(
        damaged.labels.is_empty() && damaged.error.is_some(),
        "{damaged:?}"
    );
    runtime.remove(&id, Removal::Force).await.unwrap();
}
