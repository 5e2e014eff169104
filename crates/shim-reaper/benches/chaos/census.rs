//! The state of this process as `/proc` shows it, independent of any reaper.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Returns the children of every thread, including zombies.
pub(crate) fn children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().map(|pid| pid.parse().unwrap());
            pids.collect::<Vec<u32>>()
        })
        .collect()
}

pub(crate) fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| rest.starts_with('Z'))
}

pub(crate) fn is_running(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap() && !is_zombie(pid)
}

/// The number of children that a round has left.
pub(crate) struct Remaining {
    pub(crate) zombies: u64,
    pub(crate) running: u64,
}

/// Kills and reaps all remaining children before the next round.
pub(crate) fn kill_remaining() -> Remaining {
    let remaining = children();
    let (zombies, running): (Vec<u32>, Vec<u32>) =
        remaining.into_iter().partition(|pid| is_zombie(*pid));
    for &pid in zombies.iter().chain(&running) {
        let pid = Pid::from_raw(pid as i32);
        let _ = kill(pid, Signal::SIGKILL);
        let _ = waitpid(pid, None);
    }
    Remaining {
        zombies: zombies.len() as u64,
        running: running.len() as u64,
    }
}

pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

pub(crate) fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// The time after which a condition is assumed to stay false.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until the condition is true. Returns false after [`TIMEOUT`].
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}
