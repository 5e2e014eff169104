//! Ends and reaps the descendants of a payload. The shim is their subreaper.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long killed ones may take to vanish; one in an uninterruptible sleep takes longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often to look whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Kills and collects every child of this process but `except`, and, since it is their subreaper,
/// the children that they leave behind. What it may not kill, or does not vanish in time, is left.
pub fn end_all_but(except: Option<Pid>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let children = children().filter(|child| Some(*child) != except);
        // Not collected yet, so the numbers are still their own.
        let killed: Vec<_> = children
            .filter(|child| kill(*child, Signal::SIGKILL) != Err(Errno::EPERM))
            .collect();
        let mut is_any_left = false;
        for child in &killed {
            let status = waitpid(*child, Some(WaitPidFlag::WNOHANG));
            is_any_left |= status == Ok(WaitStatus::StillAlive);
        }
        if killed.is_empty() || Instant::now() >= deadline {
            return;
        }
        if is_any_left {
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// Collects the children but `except` that have ended; false if none has.
pub fn collect_all_but(except: Pid) -> bool {
    let collected = children().filter(|child| *child != except).filter(|child| {
        let status = waitpid(*child, Some(WaitPidFlag::WNOHANG));
        !matches!(status, Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD))
    });
    collected.count() > 0
}

/// Of every thread of this process. Empty on a kernel without `CONFIG_PROC_CHILDREN`.
fn children() -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            let pids = list.split_ascii_whitespace();
            pids.filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
                .collect::<Vec<_>>()
        })
}
