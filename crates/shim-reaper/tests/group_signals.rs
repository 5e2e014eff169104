//! Signals for the process group that a shim leads.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::forks::{IdleChildren, idle_child};
use common::groups::{await_end, await_growth, fork_chains, running_members};
use common::main_thread::end_main_thread;
use common::own_process::{block_on, in_own_process};
use common::recycled_pid::sleeper_with_pid;
use common::seccomp::{Argument::HasBits, refuse};
use common::{
    DEADLINE, Fixture, KillOnDrop, as_pid, eventually, is_gone, is_zombie, kernel_is_at_least,
    kill, shell, skip, sleeper, state_of,
};
use futures::poll;
use nix::errno::Errno;
use nix::libc::{self, SYS_pidfd_send_signal};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::wait::waitpid;
use nix::unistd::{Uid, setpgid, setresuid};
use shim_reaper::{GroupError, ReaperBuilder, ShimHandle, ShimReaper, Signal, SpawnOptions};

in_both_modes! {
    a_signal_reaches_every_member_and_no_other_process,
    a_shim_without_a_group_of_its_own_is_an_error,
    a_session_is_a_group,
    stop_group_kills_what_survives_sigterm,
    a_recycled_group_is_not_signalled,
    a_stop_of_all_stops_the_groups,
    a_dropped_kill_goes_on,
}

/// No members.
const NONE: [u32; 0] = [];

/// A member of another user.
const OTHER_USER: u32 = 65534;

fn spawn_leader(fixture: &Fixture, command: Command) -> ShimHandle {
    let options = SpawnOptions::new().process_group(0);
    fixture.reaper.spawn_with(command, options).unwrap()
}

/// Spawns a shim that ignores SIGTERM if `resists`, and waits until its group has `count` members.
async fn spawn_group(fixture: &Fixture, count: usize, resists: bool) -> ShimHandle {
    let trap = if resists { "trap '' TERM; " } else { "" };
    let members = "sleep 1000 & ".repeat(count - 1);
    let leader = spawn_leader(fixture, shell(&format!("{trap}{members}exec sleep 1000")));
    eventually("all members run", || {
        running_members(leader.id()).len() == count
    })
    .await;
    leader
}

async fn a_session_is_a_group(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut command = shim_reaper::Command::new("sh");
    command
        .args(["-c", "sleep 1000 & exec sleep 1000"])
        .setsid(true);
    let options = SpawnOptions::new().process_group(0);
    let leader = fixture.reaper.spawn_with(command, options).unwrap();
    eventually("both run", || running_members(leader.id()).len() == 2).await;
    assert_eq!(leader.kill_group().await.unwrap().signal(), Some(9));
    is_empty(&leader).await;
}

async fn is_empty(leader: &ShimHandle) {
    let pgid = leader.id();
    eventually("the group is empty", || running_members(pgid).is_empty()).await;
}

async fn a_signal_reaches_every_member_and_no_other_process(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let leader = spawn_group(&fixture, 4, false).await;
    let other = spawn_group(&fixture, 1, false).await;
    leader.send_group_signal(Signal::SIGTERM).unwrap();
    assert_eq!(leader.wait().await.unwrap().signal(), Some(15));
    is_empty(&leader).await;
    assert!(other.is_running());
    assert_eq!(other.kill_group().await.unwrap().signal(), Some(9));
}

async fn a_shim_without_a_group_of_its_own_is_an_error(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let leader = spawn_group(&fixture, 1, false).await;
    let join = SpawnOptions::new().process_group(leader.id() as i32);
    let joined = fixture.reaper.spawn_with(sleeper(), join).unwrap();
    assert_eq!(running_members(leader.id()).len(), 2);
    let alone = fixture.reaper.spawn(sleeper()).unwrap();
    for shim in [&joined, &alone] {
        let error = shim.send_group_signal(Signal::SIGKILL).unwrap_err();
        assert!(matches!(error, GroupError::NoGroup { pid } if pid == shim.id()));
        let error = shim.kill_group().await.unwrap_err();
        assert!(matches!(error, GroupError::NoGroup { .. }));
        assert!(shim.is_running());
    }
    leader.kill_group().await.unwrap();
    assert_eq!(joined.wait().await.unwrap().signal(), Some(9));
    alone.kill().await.unwrap();
}

async fn stop_group_kills_what_survives_sigterm(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let polite = spawn_group(&fixture, 3, false).await;
    assert_eq!(
        polite.stop_group(DEADLINE).await.unwrap().signal(),
        Some(15)
    );
    assert_eq!(running_members(polite.id()), NONE);

    let stubborn = spawn_group(&fixture, 3, true).await;
    let exit = stubborn.stop_group(Duration::from_millis(50)).await;
    assert_eq!(exit.unwrap().signal(), Some(9));
    assert_eq!(running_members(stubborn.id()), NONE);

    // The shim ends, the other process of its group does not.
    let script = "trap '' TERM; sleep 1000 & trap - TERM; exec sleep 1000";
    let mixed = spawn_leader(&fixture, shell(script));
    eventually("the leader executes sleep", || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", mixed.id()));
        name.is_ok_and(|name| name == "sleep\n") && running_members(mixed.id()).len() == 2
    })
    .await;
    let exit = mixed.stop_group(Duration::from_millis(50)).await.unwrap();
    assert_eq!(exit.signal(), Some(15));
    assert_eq!(running_members(mixed.id()), NONE);
}

async fn a_recycled_group_is_not_signalled(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let leader = spawn_group(&fixture, 1, false).await;
    let pgid = leader.kill().await.unwrap().pid;
    eventually("the leader is reaped", || is_gone(pgid)).await;
    let Some(new_leader) = sleeper_with_pid(pgid) else {
        return;
    };
    setpgid(as_pid(new_leader), as_pid(pgid)).unwrap();
    let member = idle_child();
    setpgid(as_pid(member), as_pid(pgid)).unwrap();
    let signalled = || async {
        let sent = leader.send_group_signal(Signal::SIGKILL);
        (sent.unwrap_err(), leader.kill_group().await)
    };
    let (sent, killed) = signalled().await;
    assert!(matches!(sent, GroupError::Empty { .. }), "{sent:?}");
    assert_eq!(killed.unwrap().signal(), Some(9));
    assert_eq!(running_members(pgid).len(), 2);

    // The number stays in use without a process that has it as its pid.
    kill(new_leader, SIGKILL);
    waitpid(as_pid(new_leader), None).unwrap();
    let (sent, killed) = signalled().await;
    match sent {
        GroupError::Empty { .. } => assert!(killed.is_ok()),
        GroupError::Unidentified { .. } => assert!(killed.is_err()),
        error => panic!("{error}"),
    }
    assert_eq!(running_members(pgid), [member]);
    kill(member, SIGKILL);
    waitpid(as_pid(member), None).unwrap();
}

async fn a_stop_of_all_stops_the_groups(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let polite = spawn_group(&fixture, 3, false).await;
    let report = fixture.reaper.stop_all(DEADLINE).await;
    assert_eq!((report.stopped, report.killed), (1, vec![]));
    // Once the leader is reaped, only its pidfd can identify the group.
    is_empty(&polite).await;

    let grace = Duration::from_millis(50);
    let stubborn = spawn_group(&fixture, 3, true).await;
    let report = fixture.reaper.stop_all(grace).await;
    assert_eq!(
        (report.killed, report.still_running),
        (vec![stubborn.id()], vec![])
    );

    let stubborn = spawn_group(&fixture, 3, true).await;
    let report = fixture.reaper.shutdown_stopping(grace).await;
    assert_eq!(report.killed, [stubborn.id()]);
    assert_eq!(
        (report.still_running, running_members(stubborn.id())),
        (vec![], vec![])
    );
}

#[tokio::test]
async fn a_stop_of_all_waits_for_members_that_outlive_their_leader() {
    if !kernel_is_at_least(6, 9) {
        return skip("before Linux 6.9 such a group cannot be identified");
    }
    let fixture = Fixture::new(ShimReaper::builder());
    let script = "sh -c 'trap \"sleep 0.3; exit\" TERM; sleep 1000' & exec sleep 1000";
    let leader = spawn_leader(&fixture, shell(script));
    // A shell that has forked and not yet executed `sleep` would lose the SIGTERM.
    let is_sleep = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
    };
    eventually("all members run", || {
        let members = running_members(leader.id());
        members.len() == 3 && members.iter().filter(|pid| is_sleep(pid)).count() == 2
    })
    .await;
    let report = fixture.reaper.stop_all(DEADLINE).await;
    assert_eq!((report.stopped, report.killed), (1, vec![]));
    assert_eq!(running_members(leader.id()), NONE);
}

async fn a_dropped_kill_goes_on(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let leader = spawn_group(&fixture, 3, true).await;
    drop(leader.kill_group());
    drop(leader.stop_group(Duration::ZERO));
    assert_eq!(
        running_members(leader.id()).len(),
        3,
        "a future that was not polled"
    );
    assert!(poll!(pin!(leader.kill_group())).is_pending());
    assert_eq!(leader.wait().await.unwrap().signal(), Some(9));
    is_empty(&leader).await;

    let leader = spawn_group(&fixture, 3, true).await;
    assert!(poll!(pin!(leader.stop_group(Duration::from_millis(1)))).is_pending());
    assert_eq!(leader.wait().await.unwrap().signal(), Some(9));
    is_empty(&leader).await;
}

#[test]
fn groups_are_killed_without_group_signals_by_pidfd() {
    in_own_process("groups_are_killed_without_group_signals_by_pidfd", || {
        // As before Linux 6.9.
        refuse(SYS_pidfd_send_signal, 3, HasBits(1 << 2), Errno::EINVAL);
        block_on(async {
            let builder = || ShimReaper::builder().pidfd(true);
            a_signal_reaches_every_member_and_no_other_process(builder()).await;
            stop_group_kills_what_survives_sigterm(builder()).await;
            a_recycled_group_is_not_signalled(builder()).await;
            a_stop_of_all_stops_the_groups(builder()).await;

            let fixture = Fixture::new(builder());
            let leader = spawn_group(&fixture, 3, false).await;
            leader.kill().await.unwrap();
            let error = leader.kill_group().await.unwrap_err();
            assert!(matches!(error, GroupError::Unidentified { pid } if pid == leader.id()));
            let members = running_members(leader.id());
            assert_eq!(members.len(), 2);
            members.into_iter().for_each(|pid| kill(pid, SIGKILL));
        });
    });
}

#[test]
fn a_fork_bomb_is_gone_after_the_kill() {
    in_own_process("a_fork_bomb_is_gone_after_the_kill", || {
        // The reaper reaps its orphans.
        set_child_subreaper(true).unwrap();
        block_on(async {
            for pidfd in [true, false] {
                let builder = ShimReaper::builder().pidfd(pidfd);
                let fixture = Fixture::new(builder.sweep_interval(Duration::from_millis(10)));
                for _ in 0..100 {
                    let bomb = spawn_leader(&fixture, fork_chains(3));
                    let mut stdout = bomb.take_stdout().unwrap();
                    await_growth(&mut stdout, 10).await;
                    let exit = bomb.kill_group().await.unwrap();
                    assert_eq!(exit.signal(), Some(9));
                    await_end(&mut stdout).await;
                }
                // Its members exit all the time, but the group is never empty.
                let bomb = spawn_leader(&fixture, fork_chains(3));
                let mut stdout = bomb.take_stdout().unwrap();
                await_growth(&mut stdout, 10).await;
                let stopped = bomb.stop_group(Duration::from_millis(50));
                let exit = tokio::time::timeout(DEADLINE, stopped).await.unwrap();
                assert_eq!(exit.unwrap().signal(), Some(9));
                await_end(&mut stdout).await;
            }
        });
    });
}

#[tokio::test]
async fn the_rest_of_the_group_of_an_ended_shim_is_signalled() {
    if !kernel_is_at_least(6, 9) {
        return skip("before Linux 6.9 such a group cannot be identified");
    }
    let fixture = Fixture::new(ShimReaper::builder());
    let leader = spawn_group(&fixture, 3, false).await;
    leader.kill().await.unwrap();
    eventually("the leader is reaped", || is_gone(leader.id())).await;
    assert_eq!(running_members(leader.id()).len(), 2);
    let other_handle = leader.clone();
    assert_eq!(leader.kill_group().await.unwrap().signal(), Some(9));
    assert_eq!(running_members(leader.id()), NONE);
    other_handle.kill_group().await.unwrap();

    let leader = spawn_group(&fixture, 3, false).await;
    leader.kill().await.unwrap();
    fixture.reaper.shutdown().await;
    leader.send_group_signal(Signal::SIGKILL).unwrap();
    is_empty(&leader).await;
}

#[tokio::test]
async fn a_drop_kills_the_group_even_if_the_shim_has_ended() {
    let fixture = Fixture::new(ShimReaper::builder());
    let options = SpawnOptions::new().process_group(0).kill_on_drop(true);
    let spawn = || {
        fixture
            .reaper
            .spawn_with(shell("sleep 1000 & exec sleep 1000"), options)
    };
    let running = spawn().unwrap();
    let pgid = running.id();
    eventually("all members run", || running_members(pgid).len() == 2).await;
    drop(running);
    eventually("the group is empty", || running_members(pgid).is_empty()).await;
    if !kernel_is_at_least(6, 9) {
        return;
    }
    let ended = spawn().unwrap();
    let pgid = ended.id();
    eventually("all members run", || running_members(pgid).len() == 2).await;
    ended.kill().await.unwrap();
    assert_eq!(running_members(pgid).len(), 1);
    drop(ended);
    eventually("the group is empty", || running_members(pgid).is_empty()).await;
}

#[tokio::test]
async fn a_member_that_leaves_the_group_is_not_signalled() {
    let fixture = Fixture::new(ShimReaper::builder());
    let leader = spawn_group(&fixture, 1, false).await;
    let members = IdleChildren::fork(2);
    for member in &members.0 {
        setpgid(as_pid(*member), as_pid(leader.id())).unwrap();
    }
    let [stays, leaves] = members.0[..] else {
        unreachable!()
    };
    setpgid(as_pid(leaves), as_pid(leaves)).unwrap();
    leader.kill_group().await.unwrap();
    assert_eq!([state_of(stays), state_of(leaves)], [Some('Z'), Some('S')]);
    drop(members);
    for member in [stays, leaves] {
        waitpid(as_pid(member), None).unwrap();
    }
}

#[test]
fn a_member_that_cannot_be_signalled_is_named() {
    in_own_process("a_member_that_cannot_be_signalled_is_named", || {
        if !Uid::effective().is_root() {
            return skip("this needs root");
        }
        block_on(async {
            for pidfd in [true, false] {
                let reaper = ShimReaper::builder().pidfd(pidfd);
                a_member_of_another_user_is_named(reaper).await;
            }
        });
    });
}

async fn a_member_of_another_user_is_named(builder: ReaperBuilder) {
    let fixture = Fixture::new(builder);
    let mut children = KillOnDrop::default();
    let mut shim = sleeper();
    shim.uid(OTHER_USER);
    let leader = spawn_leader(&fixture, shim);
    let mut command = sleeper();
    command.process_group(leader.id() as i32);
    let member = children.spawn(command).unwrap();

    let other = spawn_leader(&fixture, sleeper());

    let (root, user) = (Uid::from_raw(0), Uid::from_raw(OTHER_USER));
    setresuid(user, user, root).unwrap();
    let killed = leader.kill_group().await;
    let sent = other.send_group_signal(Signal::SIGKILL);
    let shim_killed = other.start_kill();
    setresuid(root, root, root).unwrap();
    assert!(matches!(&sent, Err(GroupError::Denied { pid, .. }) if *pid == other.id()));
    assert_eq!(
        shim_killed.unwrap_err().raw_os_error(),
        Some(Errno::EPERM as i32)
    );
    assert_eq!(other.kill_group().await.unwrap().signal(), Some(9));
    assert!(
        matches!(&killed, Err(GroupError::Denied { pid, .. }) if *pid == member),
        "{killed:?}"
    );
    assert_eq!(leader.wait().await.unwrap().signal(), Some(9));
    assert_eq!(running_members(leader.id()), [member]);
}

const MEMBER_VAR: &str = "SHIM_TEST_GROUP_MEMBER";

/// Does nothing, except as the program of a group member.
#[test]
fn program_that_ends_its_main_thread() {
    if std::env::var_os(MEMBER_VAR).is_some() {
        end_main_thread();
        loop {
            std::thread::park();
        }
    }
}

#[tokio::test]
async fn a_member_whose_main_thread_has_exited_is_running() {
    if !kernel_is_at_least(6, 9) {
        return skip("before Linux 6.9 such a group cannot be identified");
    }
    let fixture = Fixture::new(ShimReaper::builder());
    let mut children = KillOnDrop::default();
    let leader = spawn_leader(&fixture, sleeper());
    let mut member = Command::new(std::env::current_exe().unwrap());
    member
        .args(["program_that_ends_its_main_thread", "--exact"])
        .env(MEMBER_VAR, "1")
        .stdout(Stdio::null())
        .process_group(leader.id() as i32);
    // SAFETY: the closure makes one system call.
    unsafe {
        member.pre_exec(|| {
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            Ok(())
        })
    };
    let pid = children.spawn(member).unwrap();
    eventually("the main thread exits", || is_zombie(pid)).await;
    let report = fixture.reaper.stop_all(Duration::from_millis(50)).await;
    assert_eq!(report.killed, [leader.id()]);
    let status = children.0[0].try_wait().unwrap();
    assert_eq!(status.unwrap().signal(), Some(9));
}
