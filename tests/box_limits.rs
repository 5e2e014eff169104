//! The limits of a box, and its orphans, which its control groups identify.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use common::boxes::{
    box_dir, open_runtime, orphan_of, script, sleeping, start_box, wait_for_status,
};
use common::control_groups::{LEAVE_ORPHAN, groups_of, limited, note_skipped};
use common::frozen_process::FrozenProcess;
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually, is_gone, kill};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal::SIGKILL;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{
    BoxId, BoxSpec, BoxStatus, ControlGroup, Ending, Removal, RuntimeError, VmmRuntime, with_causes,
};

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
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
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
    let removed = runtime.remove(&bx.id, Removal::Ended).await.unwrap_err();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert!(
        matches!(removed, RuntimeError::CleanupFailed { .. }),
        "{removed}"
    );
    assert!(!is_gone(orphan), "{removed}");
    // The VMM runtime retries the cleanup by itself.
    eventually("the orphan exits", || is_gone(orphan)).await;
    runtime.remove(&bx.id, Removal::Ended).await.unwrap();
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
    runtime.remove(&bx.id, Removal::Ended).await.unwrap();
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
    while let Err(error) = runtime.remove(&id, Removal::Force).await {
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
    runtime.remove(&id, Removal::Ended).await.unwrap();
}

/// Starts a box that reaches its process limit. Returns its id, the pid of its shim, and its groups.
async fn start_fork_bomb(
    home: &PerTestBoxHome,
    runtime: &VmmRuntime,
) -> (BoxId, u32, Vec<PathBuf>) {
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
            return runtime.remove(&bx.id, Removal::Force).await.unwrap();
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
    let removed = runtime.remove(id, Removal::Force).await.unwrap_err();
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
    runtime.remove(id, Removal::Force).await.unwrap();
}
