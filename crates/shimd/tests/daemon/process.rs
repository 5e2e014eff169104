//! What there is to see of processes.

use std::fs;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// Far longer than anything takes on a busy machine; only a broken test waits for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The state letter in `/proc`, `None` when no process has the pid.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    line[line.rfind(')').unwrap() + 2..].chars().next()
}

pub(crate) fn is_gone(pid: u32) -> bool {
    state_of(pid).is_none()
}

pub(crate) fn as_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    signal::kill(as_pid(pid), signal).unwrap();
}

pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn end_of(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the end of a process", async || {
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    status.unwrap()
}
