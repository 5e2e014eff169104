//! Signals for the control group in which a shim is created.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::Duration;

use common::control_group::ControlGroup;
use common::groups::{await_end, await_growth};
use common::own_process::{block_on, in_own_process};
use common::seccomp::{Argument::Equals, refuse};
use common::{DEADLINE, eventually};
use nix::errno::Errno;
use nix::libc;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::{Uid, setresuid};
use shim_reaper::{Command, GroupError, ShimHandle, ShimReaper, Signal, SpawnOptions, Stdio};
use tokio::time::timeout;

/// A shim in its group, with a member in a session of its own.
const SESSIONS: &str = "setsid sleep 1000 & exec sleep 1000";

fn spawn(reaper: &ShimReaper, group: &ControlGroup, script: &str) -> ShimHandle {
    reaper.spawn(shell(group, script)).unwrap()
}

fn shell(group: &ControlGroup, script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).cgroup(group.open());
    shell
}

async fn has_members(group: &ControlGroup, count: usize) {
    eventually("all members run", || group.members().len() == count).await;
}

/// Runs a test in new control groups of version 1 and 2. On Linux 6.18, a child that is created in a
/// group that was killed before dies at once.
async fn in_each_version(test: &str, run: impl AsyncFn(&ShimReaper, &ControlGroup)) {
    for version in [1, 2] {
        if let Some(group) = ControlGroup::create(test, version) {
            run(&ShimReaper::start(), &group).await;
            assert_eq!(group.members().len(), 0);
        }
    }
}

#[tokio::test]
async fn the_whole_control_group_is_killed() {
    in_each_version("kill", async |reaper, group| {
        let shim = spawn(reaper, group, SESSIONS);
        has_members(group, 2).await;
        assert_eq!(shim.kill_group().await.unwrap().signal(), Some(9));
        assert_eq!(group.members().len(), 0);
        shim.kill_group().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_rest_of_the_control_group_of_an_ended_shim_is_killed() {
    in_each_version("rest", async |reaper, group| {
        let shim = spawn(reaper, group, SESSIONS);
        has_members(group, 2).await;
        shim.kill().await.unwrap();
        has_members(group, 1).await;
        assert_eq!(shim.kill_group().await.unwrap().signal(), Some(9));
    })
    .await;
}

#[tokio::test]
async fn a_shim_that_has_left_its_control_group_is_killed_with_it() {
    in_each_version("leave", async |reaper, group| {
        let other = ControlGroup(group.0.with_extension("other"));
        fs::create_dir(&other.0).unwrap();
        let shim = spawn(reaper, group, SESSIONS);
        has_members(group, 2).await;
        fs::write(other.0.join("cgroup.procs"), shim.id().to_string()).unwrap();
        let killed = timeout(DEADLINE, shim.kill_group()).await;
        shim.kill().await.unwrap();
        assert_eq!(killed.unwrap().unwrap().signal(), Some(9));
    })
    .await;
}

#[tokio::test]
async fn a_fork_bomb_in_a_control_group_is_gone_after_the_kill() {
    // Each shell starts the next one, with the same program, and exits.
    let script = "sh -c \"$0\" \"$0\" 1000 & exec sleep 1000";
    let link = "[ $1 -gt 0 ] && echo && sh -c \"$0\" \"$0\" $(($1 - 1)) &";
    for _ in 0..50 {
        in_each_version("bomb", async |reaper, group| {
            let mut bomb = shell(group, script);
            bomb.arg(link).stdout(Stdio::piped());
            let bomb = reaper.spawn(bomb).unwrap();
            let mut stdout = bomb.take_stdout().unwrap();
            await_growth(&mut stdout, 5).await;
            bomb.kill_group().await.unwrap();
            await_end(&mut stdout).await;
        })
        .await;
    }
}

/// Frozen processes do not fork. A group of version 2 is killed at once instead, from Linux 5.14 on.
#[tokio::test]
async fn a_control_group_is_frozen_while_its_members_are_killed_one_by_one() {
    let Some(group) = ControlGroup::create("freeze", 1) else {
        return;
    };
    let shim = spawn(&ShimReaper::start(), &group, SESSIONS);
    has_members(&group, 2).await;
    let state = group.0.join("freezer.state");
    let writes = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    writes.add_watch(&state, AddWatchFlags::IN_MODIFY).unwrap();
    shim.kill_group().await.unwrap();
    assert!(writes.read_events().is_ok(), "the group was not frozen");
    assert_eq!(fs::read_to_string(state).unwrap(), "THAWED\n");
}

/// Spawns a shim whose other process is in a group below its group.
async fn spawn_below(reaper: &ShimReaper, group: &ControlGroup) -> (ShimHandle, ControlGroup) {
    let inner = ControlGroup(group.0.join("inner"));
    fs::create_dir(&inner.0).unwrap();
    let shim = spawn(reaper, group, SESSIONS);
    has_members(group, 2).await;
    let member = group.members().into_iter().find(|pid| *pid != shim.id());
    fs::write(inner.0.join("cgroup.procs"), member.unwrap().to_string()).unwrap();
    (shim, inner)
}

#[tokio::test]
async fn groups_below_the_control_group_are_signalled() {
    in_each_version("signal-below", async |reaper, group| {
        let (shim, inner) = spawn_below(reaper, group).await;
        shim.send_group_signal(Signal::SIGTERM).unwrap();
        assert_eq!(shim.wait().await.unwrap().signal(), Some(15));
        has_members(&inner, 0).await;
        has_members(group, 0).await;
        let sent = shim.send_group_signal(Signal::SIGTERM);
        assert!(matches!(sent, Err(GroupError::Empty { .. })), "{sent:?}");
    })
    .await;
    in_each_version("kill-below", async |reaper, group| {
        let (shim, inner) = spawn_below(reaper, group).await;
        shim.kill_group().await.unwrap();
        assert_eq!(inner.members().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_control_group_is_stopped() {
    in_each_version("polite", async |reaper, group| {
        let shim = spawn(reaper, group, SESSIONS);
        has_members(group, 2).await;
        assert_eq!(shim.stop_group(DEADLINE).await.unwrap().signal(), Some(15));
    })
    .await;
    in_each_version("stubborn", async |reaper, group| {
        let shim = spawn(reaper, group, &format!("trap '' TERM; {SESSIONS}"));
        has_members(group, 2).await;
        let exit = shim.stop_group(Duration::from_millis(50)).await;
        assert_eq!(exit.unwrap().signal(), Some(9));
    })
    .await;
    in_each_version("all", async |reaper, group| {
        let shim = spawn(reaper, group, &format!("trap '' TERM; {SESSIONS}"));
        has_members(group, 2).await;
        let report = reaper.stop_all(Duration::from_millis(50)).await;
        assert_eq!(report.killed, [shim.id()]);
    })
    .await;
    in_each_version("drop", async |reaper, group| {
        let options = SpawnOptions::new().kill_on_drop(true);
        let shim = reaper.spawn_with(shell(group, SESSIONS), options).unwrap();
        has_members(group, 2).await;
        drop(shim);
        has_members(group, 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_removed_control_group_is_empty() {
    let Some(group) = ControlGroup::create("removed", 2) else {
        return;
    };
    let reaper = ShimReaper::start();
    let shim = spawn(&reaper, &group, "exit 3");
    shim.wait().await.unwrap();
    drop(group);
    assert_eq!(shim.kill_group().await.unwrap().code(), Some(3));
    let sent = shim.send_group_signal(Signal::SIGKILL);
    assert!(matches!(sent, Err(GroupError::Empty { .. })), "{sent:?}");
}

#[test]
fn a_member_that_cannot_be_signalled_is_named() {
    in_own_process("a_member_that_cannot_be_signalled_is_named", || {
        block_on(async {
            // The kernel kills a group of version 2 by itself.
            let Some(group) = ControlGroup::create("denied", 1) else {
                return;
            };
            let reaper = ShimReaper::start();
            let shim = spawn(&reaper, &group, "exec sleep 1000");
            let (root, user) = (Uid::from_raw(0), Uid::from_raw(65534));
            setresuid(user, user, root).unwrap();
            let sent = shim.send_group_signal(Signal::SIGKILL);
            setresuid(root, root, root).unwrap();
            let is_named =
                matches!(&sent, Err(GroupError::Denied { pid, .. }) if *pid == shim.id());
            assert!(is_named, "{sent:?}");
            shim.kill_group().await.unwrap();
        });
    });
}

#[test]
fn a_control_group_is_killed_without_pidfds_of_its_members() {
    in_own_process(
        "a_control_group_is_killed_without_pidfds_of_its_members",
        || {
            refuse(libc::SYS_pidfd_open, 1, Equals(0), Errno::EMFILE);
            block_on(in_each_version("no-pidfds", async |reaper, group| {
                let shim = spawn(reaper, group, SESSIONS);
                has_members(group, 2).await;
                shim.kill_group().await.unwrap();
                assert_eq!(group.members().len(), 0);
            }));
        },
    );
}
