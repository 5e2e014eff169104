//! Members of a shim's process group that outlive it, and fall to us, leave no zombie either.

mod common;

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::own_process::{block_on, in_own_process};
use common::{
    DEADLINE, Fixture, as_pid, eventually, exits_on_eof, is_gone, is_zombie, kill, sleeper,
};
use nix::libc;
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{ShimHandle, ShimReaper, SpawnOptions};
use tokio::io::AsyncReadExt;

#[test]
fn orphans_of_a_shim_are_collected_through_their_group_only() {
    in_own_process(
        "orphans_of_a_shim_are_collected_through_their_group_only",
        || {
            become_subreaper();
            for pidfd in [true, false] {
                block_on(collects_orphans_of_its_group_only(pidfd));
            }
        },
    );
}

async fn collects_orphans_of_its_group_only(pidfd: bool) {
    let fixture = Fixture::new(
        ShimReaper::builder()
            .pidfd(pidfd)
            .sweep_interval(Duration::from_millis(20)),
    );
    let group = SpawnOptions::new().process_group(true);
    // One orphan stays in the shim's group; another leaves it for a session of its own.
    let mut shim =
        script("sleep 1000 >/dev/null & echo $!; setsid sleep 1000 >/dev/null & echo $!; exit 3");
    shim.stdout(Stdio::piped());
    let handle = fixture.reaper.spawn_with(shim, group).await.unwrap();
    let mut stdout = handle.take_stdout().unwrap();
    let mut printed = String::new();
    stdout.read_to_string(&mut printed).await.unwrap();
    let pids: Vec<u32> = printed.lines().map(|line| line.parse().unwrap()).collect();
    let (member, stranger) = (pids[0], pids[1]);
    assert_eq!(handle.await.unwrap().code(), Some(3));
    eventually("both fell to us", || {
        parent_of(member) == Some(me()) && parent_of(stranger) == Some(me())
    })
    .await;
    eventually("the stranger has left the group", || {
        !is_zombie(stranger) && command_of(stranger).starts_with("sleep")
    })
    .await;

    // Neither a member's nor a stranger's life is touched.
    fixture.sweeps(3).await;
    kill(member, SIGKILL);
    kill(stranger, SIGKILL);
    eventually("the member is collected", || is_gone(member)).await;
    fixture.sweeps(5).await;
    assert!(
        is_zombie(stranger),
        "in no group of ours: left to its owner"
    );
    let ended = waitpid(as_pid(stranger), None).unwrap();
    assert_eq!(
        ended,
        WaitStatus::Signaled(as_pid(stranger), SIGKILL, false)
    );
    assert_eq!(fixture.reaper.stats().orphans_reaped_total, 1);
    fixture.expect(1, 0, 0).await;
}

#[test]
fn orphans_of_a_living_shim_are_reaped_once_it_has_ended() {
    in_own_process(
        "orphans_of_a_living_shim_are_reaped_once_it_has_ended",
        || {
            become_subreaper();
            block_on(async {
                let fixture = fast();
                let group = SpawnOptions::new().process_group(true).kill_on_drop(true);
                let mut shim =
                    script("(sleep 0.1 >/dev/null & echo $!); exec sleep 1000 >/dev/null");
                shim.stdout(Stdio::piped());
                let handle = fixture.reaper.spawn_with(shim, group).await.unwrap();
                let orphan = printed_pid(&handle).await;
                eventually("it has ended", || is_zombie(orphan)).await;
                fixture.sweeps(20).await;
                assert!(is_zombie(orphan), "its leader lives");
                handle.kill().unwrap();
                assert_eq!(handle.await.unwrap().signal(), Some(9));
                eventually("reaped", || is_gone(orphan)).await;
                eventually("counted", || {
                    fixture.reaper.stats().orphans_reaped_total == 1
                })
                .await;
            });
        },
    );
}

/// As a shell does with the processes of a pipeline.
#[test]
fn a_child_in_the_group_of_a_shim_is_left_to_its_owner() {
    in_own_process(
        "a_child_in_the_group_of_a_shim_is_left_to_its_owner",
        || {
            for subreaper in [false, true] {
                if subreaper {
                    become_subreaper();
                }
                for pidfd in [true, false] {
                    for leader_lives in [true, false] {
                        block_on(leaves_a_pipeline_alone(pidfd, leader_lives));
                    }
                }
            }
        },
    );
}

async fn leaves_a_pipeline_alone(pidfd: bool, leader_lives: bool) {
    let fixture = Fixture::new(
        ShimReaper::builder()
            .pidfd(pidfd)
            .sweep_interval(Duration::from_millis(5))
            .owner_grace(Duration::ZERO),
    );
    let group = SpawnOptions::new().process_group(true).kill_on_drop(true);
    let leader = fixture.reaper.spawn_with(sleeper(), group).await.unwrap();
    let mut members: Vec<Child> = (0..5)
        .map(|_| {
            let mut member = exits_on_eof(7);
            member.process_group(leader.pid().cast_signed());
            member.spawn().unwrap()
        })
        .collect();
    if !leader_lives {
        leader.kill().unwrap();
        leader.clone().await.unwrap();
    }
    for member in &mut members {
        drop(member.stdin.take());
        let pid = member.id();
        eventually("it has ended", || is_zombie(pid) || is_gone(pid)).await;
    }
    fixture.sweeps(20).await;
    for member in &mut members {
        assert_eq!(member.wait().unwrap().code(), Some(7));
    }
    if leader_lives {
        leader.kill().unwrap();
        leader.await.unwrap();
    }
    assert_eq!(fixture.reaper.stats().orphans_reaped_total, 0);
}

#[test]
fn a_registered_child_in_the_group_of_a_shim_is_left_to_its_owner() {
    in_own_process(
        "a_registered_child_in_the_group_of_a_shim_is_left_to_its_owner",
        || {
            become_subreaper();
            for leader_lives in [true, false] {
                block_on(leaves_a_registered_child_to_its_owner(leader_lives));
            }
        },
    );
}

async fn leaves_a_registered_child_to_its_owner(leader_lives: bool) {
    let fixture = Fixture::new(
        ShimReaper::builder()
            .sweep_interval(Duration::from_millis(5))
            .owner_grace(DEADLINE * 10),
    );
    let group = SpawnOptions::new().process_group(true).kill_on_drop(true);
    let leader = fixture.reaper.spawn_with(sleeper(), group).await.unwrap();
    let mut member = exits_on_eof(7);
    member.process_group(leader.pid().cast_signed());
    let mut member = member.spawn().unwrap();
    let handle = fixture.reaper.register(member.id()).await.unwrap();
    if !leader_lives {
        leader.kill().unwrap();
        leader.clone().await.unwrap();
    }
    drop(member.stdin.take());
    assert_eq!(handle.await.unwrap().code(), Some(7));
    fixture.sweeps(20).await;
    assert_eq!(member.wait().unwrap().code(), Some(7));
    let _ = leader.kill();
    leader.await.unwrap();
    assert_eq!(fixture.reaper.stats().orphans_reaped_total, 0);
}

/// An orphan and a child that the main thread forked look alike, so both have the grace period.
#[test]
fn an_orphan_is_reaped_when_the_grace_period_has_ended() {
    in_own_process(
        "an_orphan_is_reaped_when_the_grace_period_has_ended",
        || {
            become_subreaper();
            block_on(async {
                let fixture = Fixture::new(
                    ShimReaper::builder()
                        .sweep_interval(Duration::from_millis(5))
                        .owner_grace(Duration::from_millis(500)),
                );
                let group = SpawnOptions::new().process_group(true);
                let mut shim = script("sleep 1000 >/dev/null & echo $!");
                shim.stdout(Stdio::piped());
                let handle = fixture.reaper.spawn_with(shim, group).await.unwrap();
                let orphan = printed_pid(&handle).await;
                handle.await.unwrap();
                let before_death = Instant::now();
                kill(orphan, SIGKILL);
                eventually("reaped", || is_gone(orphan)).await;
                assert!(before_death.elapsed() >= Duration::from_millis(500));
                assert_eq!(fixture.reaper.stats().orphans_reaped_total, 1);
            });
        },
    );
}

/// Not even those of a shim that made itself the leader of a group.
#[test]
fn without_the_option_orphans_are_left_alone() {
    in_own_process("without_the_option_orphans_are_left_alone", || {
        become_subreaper();
        block_on(async {
            let fixture = fast();
            let spawned = fixture.reaper.spawn(leader_with_an_orphan()).await.unwrap();
            let given = leader_with_an_orphan().spawn().unwrap();
            let given = fixture.reaper.register_child(given).unwrap();
            for handle in [spawned, given] {
                let orphan = printed_pid(&handle).await;
                handle.await.unwrap();
                eventually("it has ended", || is_zombie(orphan)).await;
                fixture.sweeps(5).await;
                assert!(is_zombie(orphan));
                waitpid(as_pid(orphan), None).unwrap();
            }
            assert_eq!(fixture.reaper.stats().orphans_reaped_total, 0);
        });
    });
}

fn fast() -> Fixture {
    Fixture::new(ShimReaper::builder().sweep_interval(Duration::from_millis(20)))
}

async fn printed_pid(handle: &ShimHandle) -> u32 {
    let mut printed = String::new();
    let mut stdout = handle.take_stdout().unwrap();
    stdout.read_to_string(&mut printed).await.unwrap();
    printed.trim().parse().unwrap()
}

fn leader_with_an_orphan() -> Command {
    let mut shim = Command::new("setsid");
    shim.args(["sh", "-c", "sleep 0.1 >/dev/null & echo $!"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    shim
}

fn script(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    command
}

fn become_subreaper() {
    // SAFETY: takes integers only.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    assert_eq!(done, 0);
}

fn me() -> u32 {
    std::process::id()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 2..].split(' ').nth(1)?.parse().ok()
}

fn command_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}
