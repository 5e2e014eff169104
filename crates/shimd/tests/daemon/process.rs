//! Helpers that observe and signal processes.

use std::fs;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// Far longer than any step takes on a busy machine: only a failing test waits this long.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the state letter in `/proc/PID/stat`, or `None` if the process does not exist.
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

/// Polls until the condition holds. Panics after [`TEST_TIMEOUT`].
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition().await {
        assert!(
            Instant::now() < deadline,
            "not within {TEST_TIMEOUT:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn wait_for_exit(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the process exits", async || {
        status = child.try_wait().unwrap();
        status.is_some()
    })
    .await;
    status.unwrap()
}
