//! The control groups of a box: which runtimes and payloads create, and which are left.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::boxes::{
    box_dir, open_runtime, orphan_of, script, sleeping, start_box, wait_for_status,
};
use common::control_groups::{LEAVE_ORPHAN, groups_of, limited};
use common::{DEADLINE, eventually, is_gone, kill};
use nix::sys::signal::Signal::SIGKILL;
use vmm_runtime::testing::PerTestBoxHome;
use vmm_runtime::{BoxStatus, Removal};

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
    runtime.remove(&removed.id, Removal::Force).await.unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    // The next run has a new group.
    let again = runtime.start(&stopped.id).await.unwrap();
    assert_eq!(again.status, BoxStatus::Running);
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
    runtime.remove(&changed.id, Removal::Force).await.unwrap();
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
    runtime.remove(&bx.id, Removal::Ended).await.unwrap();
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
    runtime.remove(&bx.id, Removal::Ended).await.unwrap();
    eventually("the orphan exits", || is_gone(orphan)).await;
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
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
    let first = runtime.remove(&nested.id, Removal::Force);
    let (first, others) = tokio::join!(first, runtime.remove(&other.id, Removal::Force));
    others.unwrap();
    let deadline = Instant::now() + DEADLINE;
    // On a busy machine one attempt may time out.
    let mut removed = first;
    while let Err(error) = removed {
        assert!(Instant::now() < deadline, "{error}");
        removed = runtime.remove(&nested.id, Removal::Force).await;
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
    runtime.remove(&bx.id, Removal::Force).await.unwrap();
}
