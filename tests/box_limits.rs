//! The limits of a box, and its control groups, which identify its orphans.

mod common;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::boxes::{
    box_dir, open_runtime, orphan_of, script, sleeping, start_box, wait_for_status,
};
use common::frozen_process::FrozenProcess;
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually, is_gone, kill};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal::SIGKILL;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxSpec, BoxStatus, ControlGroup, Ending, RuntimeError, VmmRuntime, with_causes,
};

/// Returns the control groups of a running box. Returns `None`, after a note on stderr, on a host
/// without control groups.
fn groups_of(home: &PerTestBoxHome, id: &str) -> Option<Vec<PathBuf>> {
    if let Err(error) = ControlGroup::check() {
        note_skipped(&error);
        return None;
    }
    let record = fs::read_to_string(box_dir(home, id).join("cgroup")).unwrap();
    let dirs: Vec<_> = record.lines().map(PathBuf::from).collect();
    assert!(
        !dirs.is_empty() && dirs.iter().all(|dir| dir.exists()),
        "{dirs:?}"
    );
    Some(dirs)
}

/// Writes to stderr directly, because `println` output is hidden when a test passes.
fn note_skipped(why: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "SKIPPED, in part: {why}");
}

/// A command that leaves an orphan which only its control group identifies.
const LEAVE_ORPHAN: &str = "setsid env -i sh -c 'echo $$ > orphan; exec sleep 1000' & wait";

fn limited(spec: BoxSpec) -> BoxSpec {
    spec.cpus(1).memory_mib(64)
}

#[tokio::test]
async fn a_box_that_uses_up_its_memory_fails_with_out_of_memory() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    // tail(1) buffers an endless line.
    let spec = limited(BoxSpec::new(["tail", "/dev/zero"]));
    let bx = start_box(&runtime, spec).await;
    assert_eq!((bx.cpus, bx.memory_mib), (Some(1), Some(64)));
    let ended = wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    if let Err(error) = ControlGroup::check() {
        note_skipped(&error);
        // The allocation fails.
        assert_eq!(ended.ending, Some(Ending::Exited { code: 1 }));
        return;
    }
    assert_eq!(ended.ending, Some(Ending::OutOfMemory));
    assert_eq!((ended.exit_code, ended.signal), (Some(137), Some(9)));
    assert!(ended.error.unwrap().contains("memory"));
}

#[tokio::test]
async fn a_box_always_has_a_process_limit() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    for (spec, expected) in [(sleeping(), "4096\n"), (sleeping().pids(16), "16\n")] {
        let bx = start_box(&runtime, spec).await;
        let Some(dirs) = groups_of(&home, &bx.id) else {
            return;
        };
        let limits: Vec<_> = dirs
            .iter()
            .filter_map(|dir| fs::read_to_string(dir.join("pids.max")).ok())
            .collect();
        assert_eq!(limits, [expected]);
    }
}

#[tokio::test]
async fn an_orphan_outside_session_and_environment_is_killed_with_its_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = limited(script(&format!("cd $VMM_BOX_DIR; {LEAVE_ORPHAN}")));
    let bx = start_box(&runtime, spec).await;
    let orphan = orphan_of(&home, &bx.id).await;
    let Some(dirs) = groups_of(&home, &bx.id) else {
        kill(orphan, SIGKILL);
        return;
    };
    kill(bx.pid.unwrap(), SIGKILL);
    wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    eventually("the orphan exits", || is_gone(orphan)).await;
    eventually("the groups are gone", || {
        dirs.iter().all(|dir| !dir.exists())
    })
    .await;
}

#[tokio::test]
async fn stops_and_removals_remove_the_groups() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let stopped = start_box(&runtime, limited(sleeping())).await;
    let removed = start_box(&runtime, limited(sleeping())).await;
    let dirs: Vec<_> = [&stopped, &removed]
        .iter()
        .filter_map(|info| groups_of(&home, &info.id))
        .flatten()
        .collect();
    runtime.stop(&stopped.id).await.unwrap();
    runtime.remove(&removed.id, true).await.unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    // The next run has a new group.
    let again = runtime.start(&stopped.id).await.unwrap();
    assert_eq!(again.status, BoxStatus::Running);
}

/// The groups of the previous run look like those of the new one.
#[tokio::test]
async fn a_start_after_a_death_cleans_up_first() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script(&format!("cd $VMM_BOX_DIR; {LEAVE_ORPHAN}"));
    let mut bx = start_box(&runtime, limited(spec)).await;
    let mut groups = Vec::new();
    for round in 0..40 {
        let Some(current) = groups_of(&home, &bx.id) else {
            // Without groups only the test can kill the orphan.
            kill(orphan_of(&home, &bx.id).await, SIGKILL);
            return;
        };
        groups.extend(current);
        let pid = bx.pid.unwrap();
        kill(pid, SIGKILL);
        tokio::time::sleep(std::time::Duration::from_millis(round % 5)).await;
        loop {
            bx = runtime.start(&bx.id).await.unwrap();
            if bx.pid != Some(pid) {
                break;
            }
        }
    }
    // This start waits for all earlier operations on the box.
    runtime.start(&bx.id).await.unwrap();
    let metrics = runtime.metrics().await;
    assert_eq!(metrics.boxes_failed_total, 40, "one failure per death");
    let current = groups_of(&home, &bx.id).unwrap_or_default();
    groups.retain(|dir| !current.contains(dir) && dir.exists());
    assert_eq!(groups, Vec::<PathBuf>::new());
    runtime.remove(&bx.id, true).await.unwrap();
}

#[tokio::test]
async fn a_forged_group_record_does_not_affect_another_box() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let changed = start_box(&runtime, limited(sleeping())).await;
    let other = start_box(&runtime, limited(sleeping())).await;
    let (Some(dirs), Some(_)) = (groups_of(&home, &changed.id), groups_of(&home, &other.id)) else {
        return;
    };
    let record = |id| box_dir(&home, id).join("cgroup");
    // A directory that only looks like a group is not used either.
    let fake = box_dir(&home, &changed.id).join(dirs[0].file_name().unwrap());
    fs::create_dir(&fake).unwrap();
    fs::write(fake.join("cgroup.procs"), other.pid.unwrap().to_string()).unwrap();
    let other_groups = fs::read_to_string(record(&other.id)).unwrap();
    fs::write(
        record(&changed.id),
        format!("{other_groups}{}\n", fake.display()),
    )
    .unwrap();
    kill(changed.pid.unwrap(), SIGKILL);
    wait_for_status(&runtime, &changed.id, BoxStatus::Failed).await;
    runtime.remove(&changed.id, true).await.unwrap();
    assert_eq!(runtime.info(&other.id).await.unwrap().pid, other.pid);
    // The VMM runtime finds the groups of the box without the record.
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

#[tokio::test]
async fn groups_that_a_payload_has_created_are_removed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let divide = "cd $VMM_BOX_DIR; for dir in $(cat cgroup); do mkdir $dir/inner; done; \
                  env -i setsid -f sh -c 'for dir in $(cat cgroup); do \
                  echo $$ > $dir/inner/cgroup.procs; done; echo $$ > orphan; exec sleep 1000'; \
                  exec sleep 1000";
    let bx = start_box(&runtime, limited(script(divide))).await;
    let Some(dirs) = groups_of(&home, &bx.id) else {
        return;
    };
    let orphan = orphan_of(&home, &bx.id).await;
    kill(bx.pid.unwrap(), SIGKILL);
    wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    runtime.remove(&bx.id, false).await.unwrap();
    eventually("the orphan exits", || is_gone(orphan)).await;
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

#[tokio::test]
async fn groups_nested_deeper_than_the_longest_path_are_removed() {
    const NEST: &str = r#"
import os
box = os.getcwd()
for group in open("cgroup").read().split():
    os.chdir(group)
    for _ in range(40):
        os.mkdir("g" * 200)
        os.chdir("g" * 200)
    open("cgroup.procs", "w").write("0")
open(box + "/orphan", "w").write(f"{os.getpid()}\n")
os.execlp("sleep", "sleep", "1000")
"#;
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let nest = "cd $VMM_BOX_DIR; env -i setsid -f $(command -v python3) nest.py; \
                exec sleep 1000";
    let write = format!("cat > $VMM_BOX_DIR/nest.py; {nest}");
    let bx = start_box(&runtime, limited(script(&write)).stdin(NEST)).await;
    let Some(dirs) = groups_of(&home, &bx.id) else {
        return;
    };
    let orphan = orphan_of(&home, &bx.id).await;
    kill(bx.pid.unwrap(), SIGKILL);
    wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    runtime.remove(&bx.id, false).await.unwrap();
    eventually("the orphan exits", || is_gone(orphan)).await;
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

#[test]
fn orphans_are_killed_once_descriptors_are_available() {
    in_own_process("orphans_are_killed_once_descriptors_are_available", || {
        block_on(kills_orphans_when_descriptors_are_available())
    });
}

async fn kills_orphans_when_descriptors_are_available() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(
        &runtime,
        limited(script(&format!("cd $VMM_BOX_DIR; {LEAVE_ORPHAN}"))),
    )
    .await;
    let orphan = orphan_of(&home, &bx.id).await;
    if groups_of(&home, &bx.id).is_none() {
        return kill(orphan, SIGKILL);
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    kill(bx.pid.unwrap(), SIGKILL);
    wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    let removed = runtime.remove(&bx.id, false).await.unwrap_err();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert!(
        matches!(removed, RuntimeError::CleanupFailed { .. }),
        "{removed}"
    );
    assert!(!is_gone(orphan), "{removed}");
    // The VMM runtime retries the cleanup by itself.
    eventually("the orphan exits", || is_gone(orphan)).await;
    runtime.remove(&bx.id, false).await.unwrap();
}

#[tokio::test]
async fn a_process_that_forks_and_exits_in_a_loop_is_killed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let hop = "#!/bin/sh\necho $$ >> hops\n./hop &\n";
    let write = format!("cd $VMM_BOX_DIR; printf '{hop}' > hop; chmod +x hop; ");
    let spec = script(&format!("{write} setsid env -i ./hop; exec sleep 1000"));
    let bx = start_box(&runtime, limited(spec)).await;
    let hops = box_dir(&home, &bx.id).join("hops");
    let count = || {
        fs::read_to_string(&hops)
            .unwrap_or_default()
            .lines()
            .count()
    };
    eventually("ten forks", || count() > 10).await;
    let Some(dirs) = groups_of(&home, &bx.id) else {
        // Without groups only the test can end the loop.
        fs::write(box_dir(&home, &bx.id).join("hop"), "").unwrap();
        return;
    };
    kill(bx.pid.unwrap(), SIGKILL);
    eventually("the groups are gone", || {
        dirs.iter().all(|dir| !dir.exists())
    })
    .await;
    runtime.remove(&bx.id, false).await.unwrap();
}

/// Every killed process is replaced by a new fork.
#[tokio::test]
async fn a_removal_kills_a_fork_bomb() {
    if let Err(error) = ControlGroup::check() {
        return note_skipped(&error);
    }
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (id, _, dirs) = start_fork_bomb(&home, &runtime).await;
    let deadline = Instant::now() + DEADLINE;
    // On a busy machine one attempt may time out.
    while let Err(error) = runtime.remove(&id, true).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

/// The box has more processes than the VMM runtime has descriptors.
#[test]
fn a_fork_bomb_is_killed_with_its_shim() {
    in_own_process("a_fork_bomb_is_killed_with_its_shim", || {
        block_on(kills_a_fork_bomb())
    });
}

async fn kills_a_fork_bomb() {
    if let Err(error) = ControlGroup::check() {
        return note_skipped(&error);
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 100, hard).unwrap();
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let (id, shim, dirs) = start_fork_bomb(&home, &runtime).await;
    kill(shim, SIGKILL);
    eventually("the groups are gone", || {
        dirs.iter().all(|dir| !dir.exists())
    })
    .await;
    runtime.remove(&id, false).await.unwrap();
}

/// Starts a box that reaches its process limit. Returns its id, the pid of its shim, and its groups.
async fn start_fork_bomb(
    home: &PerTestBoxHome,
    runtime: &VmmRuntime,
) -> (String, u32, Vec<PathBuf>) {
    // The fork bomb ends by itself if the test fails.
    let bomb = "import os, time
end = time.monotonic() + 90
while time.monotonic() < end:
    try: os.fork()
    except OSError: time.sleep(0.02)";
    let payload = format!("setsid env -i python3 -c '{bomb}' & exec sleep 1000");
    let bx = start_box(runtime, script(&payload).pids(200)).await;
    let dirs = groups_of(home, &bx.id).unwrap();
    let pids = || {
        let current = |dir: &PathBuf| fs::read_to_string(dir.join("pids.current")).ok();
        dirs.iter().find_map(current)
    };
    eventually("the box reaches its limit", || {
        pids().as_deref() == Some("200\n")
    })
    .await;
    (bx.id, bx.pid.unwrap(), dirs)
}

#[tokio::test]
async fn a_box_with_live_orphans_can_neither_start_nor_be_removed() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let spec = script("cd $VMM_BOX_DIR; setsid sh -c 'echo $$ > orphan; exec sleep 1000' & wait");
    let bx = start_box(&runtime, spec).await;
    let orphan = orphan_of(&home, &bx.id).await;
    let frozen = match FrozenProcess::freeze(orphan) {
        Ok(frozen) => frozen,
        Err(error) => {
            note_skipped(&error);
            return runtime.remove(&bx.id, true).await.unwrap();
        }
    };
    kill(bx.pid.unwrap(), SIGKILL);
    wait_for_status(&runtime, &bx.id, BoxStatus::Failed).await;
    let id = &bx.id;
    let started = runtime.start(id).await.unwrap_err();
    assert!(
        matches!(started, RuntimeError::CleanupFailed { .. }),
        "{started}"
    );
    let removed = runtime.remove(id, true).await.unwrap_err();
    assert!(
        matches!(removed, RuntimeError::CleanupFailed { .. }),
        "{removed}"
    );
    assert!(
        with_causes(&removed).contains(&orphan.to_string()),
        "{removed:?}"
    );
    frozen.thaw();
    runtime.start(id).await.unwrap();
    eventually("the orphan exits", || is_gone(orphan)).await;
    runtime.remove(id, true).await.unwrap();
}

/// More groups than one search visits.
const NESTED_GROUPS: usize = 10_000;

/// Creates groups within a group, as its payload could. Returns the last one. The kernel may allow
/// fewer than [`NESTED_GROUPS`].
fn create_nested(group: &Path) -> Option<PathBuf> {
    let names = (0..NESTED_GROUPS).map(|number| group.join(number.to_string()));
    let created = names.take_while(|inner| fs::create_dir(inner).is_ok());
    created.last()
}

#[tokio::test]
async fn a_box_with_very_many_nested_groups_is_removed_and_delays_no_other() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let payload = format!("cd $VMM_BOX_DIR; {LEAVE_ORPHAN}");
    let nested = start_box(&runtime, script(&payload)).await;
    let other = start_box(&runtime, script(&payload)).await;
    let orphans = [
        orphan_of(&home, &nested.id).await,
        orphan_of(&home, &other.id).await,
    ];
    let Some(dirs) = groups_of(&home, &nested.id) else {
        for orphan in orphans {
            kill(orphan, SIGKILL);
        }
        return;
    };
    let inner = create_nested(&dirs[0]).unwrap();
    fs::write(inner.join("cgroup.procs"), orphans[0].to_string()).unwrap();
    for bx in [&nested, &other] {
        kill(bx.pid.unwrap(), SIGKILL);
    }
    wait_for_status(&runtime, &nested.id, BoxStatus::Failed).await;
    let first = runtime.remove(&nested.id, true);
    let (first, others) = tokio::join!(first, runtime.remove(&other.id, true));
    others.unwrap();
    let deadline = Instant::now() + DEADLINE;
    // On a busy machine one attempt may time out.
    let mut removed = first;
    while let Err(error) = removed {
        assert!(Instant::now() < deadline, "{error}");
        removed = runtime.remove(&nested.id, true).await;
    }
    eventually("the orphans exit", || orphans.into_iter().all(is_gone)).await;
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

/// The shim removes what it can in its time, and the VMM runtime removes the rest.
#[tokio::test]
async fn a_box_with_very_many_nested_groups_is_stopped_in_time() {
    let home = PerTestBoxHome::new();
    let runtime = open_runtime(&home).await;
    let bx = start_box(&runtime, sleeping()).await;
    let Some(dirs) = groups_of(&home, &bx.id) else {
        return;
    };
    create_nested(&dirs[0]).unwrap();
    runtime.stop(&bx.id).await.unwrap();
    assert_eq!(
        runtime.info(&bx.id).await.unwrap().status,
        BoxStatus::Stopped
    );
    eventually("the groups are gone", || {
        dirs.iter().all(|dir| !dir.exists())
    })
    .await;
    runtime.remove(&bx.id, true).await.unwrap();
}
