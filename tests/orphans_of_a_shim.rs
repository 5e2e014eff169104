//! Members of a shim's process group that outlive it, and fall to us, leave no zombie either.

mod common;

use std::process::{Command, Stdio};
use std::time::Duration;

use common::own_process::{block_on, in_own_process};
use common::{Fixture, as_pid, eventually, is_gone, is_zombie, kill};
use nix::libc;
use nix::sys::signal::Signal::SIGKILL;
use nix::sys::wait::{WaitStatus, waitpid};
use shim_reaper::{ShimReaper, SpawnOptions};
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
fn orphans_of_a_living_shim_are_collected_too() {
    in_own_process("orphans_of_a_living_shim_are_collected_too", || {
        become_subreaper();
        block_on(async {
            let fixture =
                Fixture::new(ShimReaper::builder().sweep_interval(Duration::from_millis(20)));
            let group = SpawnOptions::new().process_group(true);
            let mut shim = script("(sleep 0.1 >/dev/null & echo $!); exec sleep 1000 >/dev/null");
            shim.stdout(Stdio::piped());
            let handle = fixture.reaper.spawn_with(shim, group).await.unwrap();
            let mut stdout = handle.take_stdout().unwrap();
            let mut printed = String::new();
            stdout.read_to_string(&mut printed).await.unwrap();
            let orphan: u32 = printed.trim().parse().unwrap();
            eventually("collected while the shim lives", || is_gone(orphan)).await;
            eventually("counted", || {
                fixture.reaper.stats().orphans_reaped_total == 1
            })
            .await;
            assert!(handle.is_running());
            handle.kill().unwrap();
            assert_eq!(handle.await.unwrap().signal(), Some(9));
        });
    });
}

/// Not even those of a shim that made itself the leader of a group.
#[test]
fn without_the_option_orphans_are_left_alone() {
    in_own_process("without_the_option_orphans_are_left_alone", || {
        become_subreaper();
        block_on(async {
            let interval = Duration::from_millis(20);
            let fixture = Fixture::new(ShimReaper::builder().sweep_interval(interval));
            let spawned = fixture.reaper.spawn(leader_with_an_orphan()).await.unwrap();
            let given = leader_with_an_orphan().spawn().unwrap();
            let given = fixture.reaper.register_child(given).unwrap();
            for handle in [spawned, given] {
                let mut printed = String::new();
                let mut stdout = handle.take_stdout().unwrap();
                stdout.read_to_string(&mut printed).await.unwrap();
                handle.await.unwrap();
                let orphan: u32 = printed.trim().parse().unwrap();
                eventually("it has ended", || is_zombie(orphan)).await;
                fixture.sweeps(5).await;
                assert!(is_zombie(orphan));
                waitpid(as_pid(orphan), None).unwrap();
            }
            assert_eq!(fixture.reaper.stats().orphans_reaped_total, 0);
        });
    });
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
