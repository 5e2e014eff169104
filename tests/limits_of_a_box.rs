//! A box gets the processors and the memory of its spec, and its control group gives strays away.

mod common;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use common::boxes::{dir_of, open, script, sleeping, started, stray_of, until};
use common::frozen::Frozen;
use common::own_process::{block_on, in_own_process};
use common::{DEADLINE, eventually, is_gone, kill};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal::SIGKILL;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxSpec, BoxStatus, ControlGroup, Ending, RuntimeError, VmmRuntime};

/// The control groups of a running box; none on a host that gives it none, which is said.
fn groups_of(home: &PerTestBoxHome, id: &str) -> Option<Vec<PathBuf>> {
    if let Err(error) = ControlGroup::check() {
        skipped(&error);
        return None;
    }
    let record = fs::read_to_string(dir_of(home, id).join("cgroup")).unwrap();
    let dirs: Vec<_> = record.lines().map(PathBuf::from).collect();
    assert!(
        !dirs.is_empty() && dirs.iter().all(|dir| dir.exists()),
        "{dirs:?}"
    );
    Some(dirs)
}

/// Not by `println`, which a test that passes does not show.
fn skipped(why: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "SKIPPED, in part: {why}");
}

/// Leaves what only a group gives away.
const AWAY: &str = "setsid env -i sh -c 'echo $$ > stray; exec sleep 1000' & wait";

fn bounded(spec: BoxSpec) -> BoxSpec {
    spec.cpus(1).memory_mib(64)
}

#[tokio::test]
async fn a_box_that_uses_up_its_memory_has_failed_of_that() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    // Looks for the last line of what has none.
    let spec = bounded(BoxSpec::new(["tail", "/dev/zero"]));
    let greedy = started(&runtime, spec).await;
    assert_eq!((greedy.cpus, greedy.memory_mib), (Some(1), Some(64)));
    let ended = until(&runtime, &greedy.id, BoxStatus::Failed).await;
    if let Err(error) = ControlGroup::check() {
        skipped(&error);
        // It notices by itself.
        assert_eq!(ended.ending, Some(Ending::Exited { code: 1 }));
        return;
    }
    assert_eq!(ended.ending, Some(Ending::OutOfMemory));
    assert_eq!((ended.exit_code, ended.signal), (Some(137), Some(9)));
    assert!(ended.error.unwrap().contains("memory"));
}

#[tokio::test]
async fn a_box_has_a_limit_of_processes_whether_it_asks_for_one_or_not() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    for (spec, expected) in [(sleeping(), "4096\n"), (sleeping().pids(16), "16\n")] {
        let running = started(&runtime, spec).await;
        let Some(dirs) = groups_of(&home, &running.id) else {
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
async fn who_has_left_session_and_environment_does_not_survive_a_killed_shim() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let spec = bounded(script(&format!("cd $VMM_BOX_DIR; {AWAY}")));
    let running = started(&runtime, spec).await;
    let stray = stray_of(&home, &running.id).await;
    let Some(dirs) = groups_of(&home, &running.id) else {
        kill(stray, SIGKILL);
        return;
    };
    kill(running.pid.unwrap(), SIGKILL);
    until(&runtime, &running.id, BoxStatus::Failed).await;
    eventually("its end", || is_gone(stray)).await;
    eventually("the end of its groups", || {
        dirs.iter().all(|dir| !dir.exists())
    })
    .await;
}

#[tokio::test]
async fn no_group_outlives_its_box() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let stopped = started(&runtime, bounded(sleeping())).await;
    let removed = started(&runtime, bounded(sleeping())).await;
    let dirs: Vec<_> = [&stopped, &removed]
        .iter()
        .filter_map(|info| groups_of(&home, &info.id))
        .flatten()
        .collect();
    runtime.stop(&stopped.id).await.unwrap();
    runtime.remove(&removed.id, true).await.unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    // Again, in another group.
    let again = runtime.start(&stopped.id).await.unwrap();
    assert_eq!(again.status, BoxStatus::Running);
}

/// What the last run has left looks like what the new one makes.
#[tokio::test]
async fn a_start_that_meets_a_death_clears_up_after_it_first() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let spec = script(&format!("cd $VMM_BOX_DIR; {AWAY}"));
    let mut running = started(&runtime, bounded(spec)).await;
    let mut left = Vec::new();
    for round in 0..40 {
        let Some(groups) = groups_of(&home, &running.id) else {
            // Nobody else would find what one has left.
            kill(stray_of(&home, &running.id).await, SIGKILL);
            return;
        };
        left.extend(groups);
        let pid = running.pid.unwrap();
        kill(pid, SIGKILL);
        tokio::time::sleep(std::time::Duration::from_millis(round % 5)).await;
        loop {
            running = runtime.start(&running.id).await.unwrap();
            if running.pid != Some(pid) {
                break;
            }
        }
    }
    // Whoever waits for the box's turn has had it then.
    runtime.start(&running.id).await.unwrap();
    let metrics = runtime.metrics().await;
    assert_eq!(metrics.boxes_failed_total, 40, "one a death");
    let current = groups_of(&home, &running.id).unwrap_or_default();
    left.retain(|dir| !current.contains(dir) && dir.exists());
    assert_eq!(left, Vec::<PathBuf>::new());
    runtime.remove(&running.id, true).await.unwrap();
}

#[tokio::test]
async fn a_record_that_a_payload_has_changed_leads_to_no_other_box() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let changed = started(&runtime, bounded(sleeping())).await;
    let other = started(&runtime, bounded(sleeping())).await;
    let (Some(dirs), Some(_)) = (groups_of(&home, &changed.id), groups_of(&home, &other.id)) else {
        return;
    };
    let record = |id| dir_of(&home, id).join("cgroup");
    // Nor to what only looks like a group.
    let fake = dir_of(&home, &changed.id).join(dirs[0].file_name().unwrap());
    fs::create_dir(&fake).unwrap();
    fs::write(fake.join("cgroup.procs"), other.pid.unwrap().to_string()).unwrap();
    let theirs = fs::read_to_string(record(&other.id)).unwrap();
    fs::write(record(&changed.id), format!("{theirs}{}\n", fake.display())).unwrap();
    kill(changed.pid.unwrap(), SIGKILL);
    until(&runtime, &changed.id, BoxStatus::Failed).await;
    runtime.remove(&changed.id, true).await.unwrap();
    assert_eq!(runtime.info(&other.id).await.unwrap().pid, other.pid);
    // Its own are found without the record.
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

#[tokio::test]
async fn groups_that_a_payload_has_made_within_its_own_go_with_it() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let divide = "cd $VMM_BOX_DIR; for dir in $(cat cgroup); do mkdir $dir/inner; done; \
                  env -i setsid -f sh -c 'for dir in $(cat cgroup); do \
                  echo $$ > $dir/inner/cgroup.procs; done; echo $$ > stray; exec sleep 1000'; \
                  exec sleep 1000";
    let running = started(&runtime, bounded(script(divide))).await;
    let Some(dirs) = groups_of(&home, &running.id) else {
        return;
    };
    let stray = stray_of(&home, &running.id).await;
    kill(running.pid.unwrap(), SIGKILL);
    until(&runtime, &running.id, BoxStatus::Failed).await;
    runtime.remove(&running.id, false).await.unwrap();
    eventually("its end", || is_gone(stray)).await;
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

#[tokio::test]
async fn groups_that_a_payload_has_nested_deeper_than_a_path_is_long_go_with_it() {
    const NEST: &str = r#"
import os
box = os.getcwd()
for group in open("cgroup").read().split():
    os.chdir(group)
    for _ in range(40):
        os.mkdir("g" * 200)
        os.chdir("g" * 200)
    open("cgroup.procs", "w").write("0")
open(box + "/stray", "w").write(f"{os.getpid()}\n")
os.execlp("sleep", "sleep", "1000")
"#;
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let nest = "cd $VMM_BOX_DIR; env -i setsid -f $(command -v python3) nest.py; \
                exec sleep 1000";
    let write = format!("cat > $VMM_BOX_DIR/nest.py; {nest}");
    let running = started(&runtime, bounded(script(&write)).stdin(NEST)).await;
    let Some(dirs) = groups_of(&home, &running.id) else {
        return;
    };
    let stray = stray_of(&home, &running.id).await;
    kill(running.pid.unwrap(), SIGKILL);
    until(&runtime, &running.id, BoxStatus::Failed).await;
    runtime.remove(&running.id, false).await.unwrap();
    eventually("its end", || is_gone(stray)).await;
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

#[test]
fn strays_that_there_are_no_descriptors_to_look_for_are_ended_when_there_are() {
    in_own_process(
        "strays_that_there_are_no_descriptors_to_look_for_are_ended_when_there_are",
        || block_on(ends_strays_when_descriptors_are_back()),
    );
}

async fn ends_strays_when_descriptors_are_back() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let running = started(
        &runtime,
        bounded(script(&format!("cd $VMM_BOX_DIR; {AWAY}"))),
    )
    .await;
    let stray = stray_of(&home, &running.id).await;
    if groups_of(&home, &running.id).is_none() {
        return kill(stray, SIGKILL);
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
    kill(running.pid.unwrap(), SIGKILL);
    until(&runtime, &running.id, BoxStatus::Failed).await;
    let removed = runtime.remove(&running.id, false).await.unwrap_err();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert!(
        matches!(removed, RuntimeError::CleanupFailed { .. }),
        "{removed}"
    );
    assert!(!is_gone(stray), "{removed}");
    // Without anybody's asking.
    eventually("its end", || is_gone(stray)).await;
    runtime.remove(&running.id, false).await.unwrap();
}

#[tokio::test]
async fn what_forks_and_exits_without_end_is_ended() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let hop = "#!/bin/sh\necho $$ >> hops\n./hop &\n";
    let write = format!("cd $VMM_BOX_DIR; printf '{hop}' > hop; chmod +x hop; ");
    let spec = script(&format!("{write} setsid env -i ./hop; exec sleep 1000"));
    let running = started(&runtime, bounded(spec)).await;
    let hops = dir_of(&home, &running.id).join("hops");
    let count = || {
        fs::read_to_string(&hops)
            .unwrap_or_default()
            .lines()
            .count()
    };
    eventually("some hops", || count() > 10).await;
    let Some(dirs) = groups_of(&home, &running.id) else {
        // Nobody else would end it.
        fs::write(dir_of(&home, &running.id).join("hop"), "").unwrap();
        return;
    };
    kill(running.pid.unwrap(), SIGKILL);
    eventually("the end of its groups", || {
        dirs.iter().all(|dir| !dir.exists())
    })
    .await;
    runtime.remove(&running.id, false).await.unwrap();
}

/// Each process that is killed is replaced.
#[tokio::test]
async fn a_fork_bomb_at_its_limit_does_not_survive_its_box() {
    if let Err(error) = ControlGroup::check() {
        return skipped(&error);
    }
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let (id, _, dirs) = fork_bomb(&home, &runtime).await;
    let deadline = Instant::now() + DEADLINE;
    // On a busy machine one attempt may be too short.
    while let Err(error) = runtime.remove(&id, true).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
}

/// There are more processes than descriptors to kill them by.
#[test]
fn a_fork_bomb_at_its_limit_does_not_survive_a_killed_shim() {
    in_own_process(
        "a_fork_bomb_at_its_limit_does_not_survive_a_killed_shim",
        || block_on(ends_a_fork_bomb()),
    );
}

async fn ends_a_fork_bomb() {
    if let Err(error) = ControlGroup::check() {
        return skipped(&error);
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 100, hard).unwrap();
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let (id, shim, dirs) = fork_bomb(&home, &runtime).await;
    kill(shim, SIGKILL);
    eventually("the end of its groups", || {
        dirs.iter().all(|dir| !dir.exists())
    })
    .await;
    runtime.remove(&id, false).await.unwrap();
}

/// A box at its limit of processes: its id, its shim, its groups.
async fn fork_bomb(home: &PerTestBoxHome, runtime: &VmmRuntime) -> (String, u32, Vec<PathBuf>) {
    // It ends by itself if the test fails.
    let bomb = "import os, time
end = time.monotonic() + 90
while time.monotonic() < end:
    try: os.fork()
    except OSError: time.sleep(0.02)";
    let payload = format!("setsid env -i python3 -c '{bomb}' & exec sleep 1000");
    let running = started(runtime, script(&payload).pids(200)).await;
    let dirs = groups_of(home, &running.id).unwrap();
    let pids = || {
        let current = |dir: &PathBuf| fs::read_to_string(dir.join("pids.current")).ok();
        dirs.iter().find_map(current)
    };
    eventually("the limit", || pids().as_deref() == Some("200\n")).await;
    (running.id, running.pid.unwrap(), dirs)
}

#[tokio::test]
async fn a_box_whose_strays_survive_neither_starts_nor_goes_until_they_end() {
    let home = PerTestBoxHome::new();
    let runtime = open(&home).await;
    let away = script("cd $VMM_BOX_DIR; setsid sh -c 'echo $$ > stray; exec sleep 1000' & wait");
    let running = started(&runtime, away).await;
    let stray = stray_of(&home, &running.id).await;
    let frozen = match Frozen::freeze(stray) {
        Ok(frozen) => frozen,
        Err(error) => {
            skipped(&error);
            return runtime.remove(&running.id, true).await.unwrap();
        }
    };
    kill(running.pid.unwrap(), SIGKILL);
    until(&runtime, &running.id, BoxStatus::Failed).await;
    let id = &running.id;
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
        removed.to_string().contains(&stray.to_string()),
        "{removed}"
    );
    frozen.thaw();
    runtime.start(id).await.unwrap();
    eventually("its end", || is_gone(stray)).await;
    runtime.remove(id, true).await.unwrap();
}
