//! `ProcessMonitor` follows a process by its pid.

mod common;

use std::process::Command;

use common::{
    KillOnDrop, eventually, exits_with, is_gone, is_zombie, kernel_is_at_least, kill, sleeper,
};
use futures::poll;
use nix::sys::signal::Signal;
use vmm_runtime::{ProcessExit, ProcessMonitor};

#[tokio::test]
async fn a_child_is_reaped_and_its_exit_code_is_kept() {
    let child = exits_with(7).spawn().unwrap();
    let monitor = ProcessMonitor::new(child.id());
    assert_eq!(monitor.wait_for_exit().await.unwrap(), ProcessExit::Code(7));
    assert!(is_gone(child.id()));
    assert_eq!(monitor.try_wait().unwrap(), Some(ProcessExit::Code(7)));
    assert_eq!(monitor.wait_for_exit().await.unwrap(), ProcessExit::Code(7));
}

#[tokio::test]
async fn a_signal_is_reported_as_a_shell_exit_code() {
    let child = sleeper().spawn().unwrap();
    let monitor = ProcessMonitor::new(child.id());
    assert_eq!(monitor.try_wait().unwrap(), None);
    {
        let mut wait = std::pin::pin!(monitor.wait_for_exit());
        assert!(poll!(wait.as_mut()).is_pending());
    }
    kill(child.id(), Signal::SIGKILL);
    assert_eq!(
        monitor.wait_for_exit().await.unwrap(),
        ProcessExit::Code(137)
    );
}

#[tokio::test]
async fn a_real_time_signal_is_reported_as_a_shell_exit_code() {
    let child = common::shell("kill -40 $$").spawn().unwrap();
    let monitor = ProcessMonitor::new(child.id());
    assert_eq!(
        monitor.wait_for_exit().await.unwrap(),
        ProcessExit::Code(168)
    );
}

#[tokio::test]
async fn the_exit_of_an_unused_pid_is_unknown() {
    let mut child = exits_with(7).spawn().unwrap();
    child.wait().unwrap();
    for pid in [child.id(), 0, u32::MAX] {
        let monitor = ProcessMonitor::new(pid);
        assert_eq!(monitor.try_wait().unwrap(), Some(ProcessExit::Unknown));
        assert_eq!(monitor.wait_for_exit().await.unwrap(), ProcessExit::Unknown);
    }
}

#[tokio::test]
async fn the_exit_code_of_a_reaped_child_is_known_if_the_kernel_keeps_it() {
    let mut child = exits_with(9).spawn().unwrap();
    let monitor = ProcessMonitor::new(child.id());
    child.wait().unwrap();
    let expected = if kernel_is_at_least(6, 15) {
        ProcessExit::Code(9)
    } else {
        ProcessExit::Unknown
    };
    assert_eq!(monitor.try_wait().unwrap(), Some(expected));
}

/// Starts a process that starts a child and never reaps it. Returns the process and the pid of its
/// child.
fn spawn_grandchild(script: &str) -> (std::process::Child, u32) {
    use std::io::BufRead;
    let script = format!("{script} & echo $!; exec sleep 1000");
    let mut parent = Command::new("sh")
        .args(["-c", &script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(parent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (parent, line.trim().parse().unwrap())
}

#[tokio::test]
async fn the_zombie_of_another_parent_is_read_and_not_reaped() {
    // Exits after its parent has executed sleep(1), which does not reap.
    let exits_later = "sh -c 'until grep -q sleep /proc/$PPID/comm; do sleep 0.01; done; exit 5'";
    let (parent, pid) = spawn_grandchild(exits_later);
    let _doomed = KillOnDrop(vec![parent]);
    eventually("the grandchild exits", || is_zombie(pid)).await;
    let monitor = ProcessMonitor::new(pid);
    assert_eq!(monitor.try_wait().unwrap(), Some(ProcessExit::Code(5)));
    assert!(is_zombie(pid));
}

#[tokio::test]
async fn a_process_of_another_parent_is_followed_to_its_end() {
    let (parent, pid) = spawn_grandchild("sleep 1000");
    let _doomed = KillOnDrop(vec![parent]);
    let monitor = ProcessMonitor::new(pid);
    assert_eq!(monitor.try_wait().unwrap(), None);
    let exit = monitor.wait_for_exit();
    kill(pid, Signal::SIGTERM);
    assert_eq!(exit.await.unwrap(), ProcessExit::Code(143));
}
