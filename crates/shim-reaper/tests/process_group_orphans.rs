//! With `SpawnOptions::process_group`, the reaper also reaps the orphans in the group of a shim.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::zombie_processes,
    unsafe_code
)]

mod common;

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::main_thread::end_main_thread;
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
fn only_orphans_in_the_group_of_the_shim_are_reaped() {
    in_own_process("only_orphans_in_the_group_of_the_shim_are_reaped", || {
        become_subreaper();
        for pidfd in [true, false] {
            block_on(reaps_orphans_of_the_group_only(pidfd));
        }
    });
}

async fn reaps_orphans_of_the_group_only(pidfd: bool) {
    let fixture = Fixture::new(
        ShimReaper::builder()
            .pidfd(pidfd)
            .sweep_interval(Duration::from_millis(20)),
    );
    let group = SpawnOptions::new().process_group(0);
    // One orphan stays in the group of the shim. The other one is in the group of another process.
    let mut shim = script(
        "sleep 1000 >/dev/null & echo $!; setsid sh -c 'sleep 1000 >/dev/null & echo $!'; exit 3",
    );
    shim.stdout(Stdio::piped());
    let handle = fixture.reaper.spawn_with(shim, group).unwrap();
    let mut stdout = handle.take_stdout().unwrap();
    let mut printed = String::new();
    stdout.read_to_string(&mut printed).await.unwrap();
    let pids: Vec<u32> = printed.lines().map(|line| line.parse().unwrap()).collect();
    let (member, outsider) = (pids[0], pids[1]);
    assert_eq!(handle.await.unwrap().code(), Some(3));
    eventually("both orphans become children of this process", || {
        parent_of(member) == Some(own_pid()) && parent_of(outsider) == Some(own_pid())
    })
    .await;
    eventually("the outsider leaves the group", || {
        !is_zombie(outsider) && command_of(outsider).starts_with("sleep")
    })
    .await;

    // Both keep running.
    fixture.sweeps(3).await;
    kill(outsider, SIGKILL);
    eventually("the outsider exits", || is_zombie(outsider)).await;
    kill(member, SIGKILL);
    eventually("the member is reaped", || is_gone(member)).await;
    fixture.sweeps(5).await;
    assert!(
        is_zombie(outsider),
        "an orphan outside the group stays for its owner"
    );
    let status = waitpid(as_pid(outsider), None).unwrap();
    assert_eq!(
        status,
        WaitStatus::Signaled(as_pid(outsider), SIGKILL, false)
    );
    assert_eq!(fixture.reaper.stats().orphans_reaped_total, 1);
    fixture.expect(1, 0, 0).await;
}

#[test]
fn orphans_of_a_live_shim_are_reaped_after_the_shim_exits() {
    in_own_process(
        "orphans_of_a_live_shim_are_reaped_after_the_shim_exits",
        || {
            become_subreaper();
            block_on(async {
                let fixture = fast_fixture();
                let group = SpawnOptions::new().process_group(0).kill_on_drop(true);
                let mut shim =
                    script("(sleep 0.1 >/dev/null & echo $!); exec sleep 1000 >/dev/null");
                shim.stdout(Stdio::piped());
                let handle = fixture.reaper.spawn_with(shim, group).unwrap();
                let orphan = printed_pid(&handle).await;
                eventually("the process exits", || is_zombie(orphan)).await;
                fixture.sweeps(20).await;
                assert!(
                    is_zombie(orphan),
                    "the zombie stays while its group leader lives"
                );
                handle.start_kill().unwrap();
                assert_eq!(handle.await.unwrap().signal(), Some(9));
                eventually("the orphan is reaped", || is_gone(orphan)).await;
                eventually("the orphan is counted", || {
                    fixture.reaper.stats().orphans_reaped_total == 1
                })
                .await;
            });
        },
    );
}

/// A shell puts the processes of a pipeline into one group.
#[test]
fn an_unregistered_child_in_the_group_is_left_to_its_owner() {
    in_own_process(
        "an_unregistered_child_in_the_group_is_left_to_its_owner",
        || {
            for subreaper in [false, true] {
                if subreaper {
                    become_subreaper();
                }
                for pidfd in [true, false] {
                    for leader_lives in [true, false] {
                        block_on(leaves_a_pipeline_to_its_owner(pidfd, leader_lives));
                    }
                }
            }
        },
    );
}

async fn leaves_a_pipeline_to_its_owner(pidfd: bool, leader_lives: bool) {
    let fixture = Fixture::new(
        ShimReaper::builder()
            .pidfd(pidfd)
            .sweep_interval(Duration::from_millis(5))
            .owner_grace(Duration::ZERO),
    );
    let group = SpawnOptions::new().process_group(0).kill_on_drop(true);
    let leader = fixture.reaper.spawn_with(sleeper(), group).unwrap();
    let mut members: Vec<Child> = (0..5)
        .map(|_| {
            let mut member = exits_on_eof(7);
            member.process_group(leader.id() as i32);
            member.spawn().unwrap()
        })
        .collect();
    if !leader_lives {
        leader.start_kill().unwrap();
        leader.clone().await.unwrap();
    }
    for member in &mut members {
        drop(member.stdin.take());
        let pid = member.id();
        eventually("the process exits", || is_zombie(pid) || is_gone(pid)).await;
    }
    fixture.sweeps(20).await;
    for member in &mut members {
        assert_eq!(member.wait().unwrap().code(), Some(7));
    }
    if leader_lives {
        leader.start_kill().unwrap();
        leader.await.unwrap();
    }
    assert_eq!(fixture.reaper.stats().orphans_reaped_total, 0);
}

#[test]
fn a_registered_child_in_the_group_is_left_to_its_owner() {
    in_own_process(
        "a_registered_child_in_the_group_is_left_to_its_owner",
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
    let group = SpawnOptions::new().process_group(0).kill_on_drop(true);
    let leader = fixture.reaper.spawn_with(sleeper(), group).unwrap();
    let mut member = exits_on_eof(7);
    member.process_group(leader.id() as i32);
    let mut member = member.spawn().unwrap();
    let handle = fixture.reaper.register(member.id()).unwrap();
    if !leader_lives {
        leader.start_kill().unwrap();
        leader.clone().await.unwrap();
    }
    drop(member.stdin.take());
    assert_eq!(handle.await.unwrap().code(), Some(7));
    fixture.sweeps(20).await;
    assert_eq!(member.wait().unwrap().code(), Some(7));
    let _ = leader.start_kill();
    leader.await.unwrap();
    assert_eq!(fixture.reaper.stats().orphans_reaped_total, 0);
}

/// The kernel reparents the child to the main thread, like an orphan.
#[test]
fn a_child_of_a_thread_that_exits_is_left_to_its_owner() {
    in_own_process(
        "a_child_of_a_thread_that_exits_is_left_to_its_owner",
        || {
            become_subreaper();
            block_on(leaves_a_child_of_an_exited_thread_to_its_owner());
        },
    );
}

async fn leaves_a_child_of_an_exited_thread_to_its_owner() {
    let fixture = Fixture::new(
        ShimReaper::builder()
            .sweep_interval(Duration::from_millis(5))
            .owner_grace(Duration::ZERO),
    );
    let group = SpawnOptions::new().process_group(0);
    let leader = fixture.reaper.spawn_with(sleeper(), group).unwrap();
    let pgid = leader.id() as i32;
    let (send_member, member) = mpsc::channel();
    let (exit_thread, thread_exit) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let member = exits_on_eof(7).process_group(pgid).spawn().unwrap();
        send_member.send(member).unwrap();
        let _ = thread_exit.recv();
    });
    let mut member = member.recv().unwrap();
    leader.start_kill().unwrap();
    leader.await.unwrap();
    fixture.sweeps(2).await;

    drop(exit_thread);
    thread.join().unwrap();
    drop(member.stdin.take());
    let pid = member.id();
    eventually("the process exits", || is_zombie(pid) || is_gone(pid)).await;
    fixture.sweeps(20).await;
    assert_eq!(member.wait().unwrap().code(), Some(7));
    assert_eq!(fixture.reaper.stats().orphans_reaped_total, 0);
}

#[test]
fn no_child_is_an_orphan_in_a_process_that_gets_none() {
    in_own_process("no_child_is_an_orphan_in_a_process_that_gets_none", || {
        block_on(async {
            let fixture = Fixture::new(
                ShimReaper::builder()
                    .sweep_interval(Duration::from_millis(5))
                    .owner_grace(Duration::ZERO),
            );
            let group = SpawnOptions::new().process_group(0);
            let leader = fixture.reaper.spawn_with(sleeper(), group).unwrap();
            let pgid = leader.id() as i32;
            let fork = move || exits_on_eof(7).process_group(pgid).spawn().unwrap();
            let mut member = thread::spawn(fork).join().unwrap();
            leader.kill().await.unwrap();
            drop(member.stdin.take());
            let pid = member.id();
            eventually("the process exits", || is_zombie(pid) || is_gone(pid)).await;
            fixture.sweeps(20).await;
            assert_eq!(member.wait().unwrap().code(), Some(7));
        });
    });
}

#[test]
fn an_orphan_in_its_grace_period_hides_no_other_after_the_main_thread_exits() {
    in_own_process(
        "an_orphan_in_its_grace_period_hides_no_other_after_the_main_thread_exits",
        || {
            become_subreaper();
            end_main_thread();
            let result = std::panic::catch_unwind(|| block_on(reaps_all_within_one_grace_period()));
            // Without its main thread, the test harness does not report the result.
            std::process::exit(i32::from(result.is_err()));
        },
    );
}

async fn reaps_all_within_one_grace_period() {
    let grace = Duration::from_secs(1);
    let fixture = Fixture::new(
        ShimReaper::builder()
            .sweep_interval(Duration::from_millis(20))
            .owner_grace(grace),
    );
    // One grace period each, in turn, would take longer than the deadline.
    let orphans = DEADLINE.as_secs() / grace.as_secs() + 5;
    let group = SpawnOptions::new().process_group(0);
    let shim = script(&format!("for i in $(seq {orphans}); do sleep 0.1 & done"));
    let leader = fixture.reaper.spawn_with(shim, group).unwrap();
    leader.await.unwrap();
    eventually("all orphans are reaped", || {
        fixture.reaper.stats().orphans_reaped_total == orphans
    })
    .await;
}

/// The reaper cannot distinguish an orphan from a child that the main thread forked, so both get the
/// grace period.
#[test]
fn an_orphan_is_reaped_when_the_grace_period_expires() {
    in_own_process("an_orphan_is_reaped_when_the_grace_period_expires", || {
        become_subreaper();
        block_on(async {
            let fixture = Fixture::new(
                ShimReaper::builder()
                    .sweep_interval(Duration::from_millis(5))
                    .owner_grace(Duration::from_millis(500)),
            );
            let group = SpawnOptions::new().process_group(0);
            let mut shim = script("sleep 1000 >/dev/null & echo $!");
            shim.stdout(Stdio::piped());
            let handle = fixture.reaper.spawn_with(shim, group).unwrap();
            let orphan = printed_pid(&handle).await;
            handle.await.unwrap();
            let before_exit = Instant::now();
            kill(orphan, SIGKILL);
            eventually("the orphan is reaped", || is_gone(orphan)).await;
            assert!(before_exit.elapsed() >= Duration::from_millis(500));
            // The reaper counts an orphan after it has reaped it.
            eventually("the orphan is counted", || {
                fixture.reaper.stats().orphans_reaped_total == 1
            })
            .await;
        });
    });
}

/// This holds even if the shim made itself the leader of a group.
#[test]
fn without_process_group_no_orphan_is_reaped() {
    in_own_process("without_process_group_no_orphan_is_reaped", || {
        become_subreaper();
        block_on(async {
            let fixture = fast_fixture();
            let first = fixture.reaper.spawn(leader_with_an_orphan()).unwrap();
            let child = leader_with_an_orphan().spawn().unwrap();
            let second = fixture.reaper.register_child(child).unwrap();
            for handle in [first, second] {
                let orphan = printed_pid(&handle).await;
                handle.await.unwrap();
                eventually("the process exits", || is_zombie(orphan)).await;
                fixture.sweeps(5).await;
                assert!(is_zombie(orphan));
                waitpid(as_pid(orphan), None).unwrap();
            }
            assert_eq!(fixture.reaper.stats().orphans_reaped_total, 0);
        });
    });
}

fn fast_fixture() -> Fixture {
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
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    assert_eq!(result, 0);
}

fn own_pid() -> u32 {
    std::process::id()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 2..].split(' ').nth(1)?.parse().ok()
}

fn command_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}
