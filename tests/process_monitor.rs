//! Bare pids, followed to their end.

mod common;

use std::process::Command;

use common::{
    Doomed, eventually, exits_with, is_gone, is_zombie, kernel_is_at_least, kill, sleeper,
};
use futures::FutureExt;
use nix::sys::signal::Signal;
use vmm_runtime::{ProcessExit, ProcessMonitor};

#[tokio::test]
async fn a_child_is_collected_with_its_code_and_asked_again_gives_the_same() {
    let child = exits_with(7).spawn().unwrap();
    let monitor = ProcessMonitor::new(child.id());
    assert_eq!(monitor.wait_for_exit().await.unwrap(), ProcessExit::Code(7));
    assert!(is_gone(child.id()));
    assert_eq!(monitor.try_wait().unwrap(), Some(ProcessExit::Code(7)));
    assert_eq!(monitor.wait_for_exit().await.unwrap(), ProcessExit::Code(7));
}

#[tokio::test]
async fn a_signal_is_told_as_a_shell_does() {
    let child = sleeper().spawn().unwrap();
    let monitor = ProcessMonitor::new(child.id());
    assert_eq!(monitor.try_wait().unwrap(), None);
    {
        let mut wait = std::pin::pin!(monitor.wait_for_exit());
        assert!(wait.as_mut().now_or_never().is_none());
    }
    kill(child.id(), Signal::SIGKILL);
    assert_eq!(
        monitor.wait_for_exit().await.unwrap(),
        ProcessExit::Code(137)
    );
}

#[tokio::test]
async fn a_real_time_signal_is_told_as_well() {
    let child = common::shell("kill -40 $$").spawn().unwrap();
    let monitor = ProcessMonitor::new(child.id());
    assert_eq!(
        monitor.wait_for_exit().await.unwrap(),
        ProcessExit::Code(168)
    );
}

#[tokio::test]
async fn a_pid_that_nobody_has_is_unknown() {
    let mut child = exits_with(7).spawn().unwrap();
    child.wait().unwrap();
    for pid in [child.id(), 0, u32::MAX] {
        let monitor = ProcessMonitor::new(pid);
        assert_eq!(monitor.try_wait().unwrap(), Some(ProcessExit::Unknown));
        assert_eq!(monitor.wait_for_exit().await.unwrap(), ProcessExit::Unknown);
    }
}

#[tokio::test]
async fn a_child_that_its_owner_has_collected_is_still_known_where_the_kernel_knows() {
    let mut child = exits_with(9).spawn().unwrap();
    let monitor = ProcessMonitor::new(child.id());
    child.wait().unwrap();
    let expected = match kernel_is_at_least(6, 15) {
        true => ProcessExit::Code(9),
        false => ProcessExit::Unknown,
    };
    assert_eq!(monitor.try_wait().unwrap(), Some(expected));
}

/// A process that starts a child, whose pid this is, and never collects it.
fn grandchild(script: &str) -> (std::process::Child, u32) {
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
async fn the_zombie_of_another_parent_is_read_and_left_to_it() {
    // Not before its parent has become one that does not collect.
    let patient = "sh -c 'until grep -q sleep /proc/$PPID/comm; do sleep 0.01; done; exit 5'";
    let (parent, pid) = grandchild(patient);
    let _doomed = Doomed(vec![parent]);
    eventually("a zombie", || is_zombie(pid)).await;
    let monitor = ProcessMonitor::new(pid);
    assert_eq!(monitor.try_wait().unwrap(), Some(ProcessExit::Code(5)));
    assert!(is_zombie(pid));
}

#[tokio::test]
async fn a_process_that_is_no_child_is_followed_to_its_end() {
    let (parent, pid) = grandchild("sleep 1000");
    let _doomed = Doomed(vec![parent]);
    let monitor = ProcessMonitor::new(pid);
    assert_eq!(monitor.try_wait().unwrap(), None);
    let waiting = monitor.wait_for_exit();
    kill(pid, Signal::SIGTERM);
    assert_eq!(waiting.await.unwrap(), ProcessExit::Code(143));
}
