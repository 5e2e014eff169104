use std::fs;
use std::process;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Enough for any tree that does not fork for ever.
const ROUNDS: u32 = 1000;

/// Kills and collects every child of this process but `except`, and, since it is their subreaper,
/// the children that they leave behind.
pub(super) fn end_all_but(except: Pid) {
    for _ in 0..ROUNDS {
        let children = children();
        let mut found = false;
        for child in children.into_iter().filter(|child| *child != except) {
            found = true;
            // Not collected yet, so the number is still its own.
            let _ = kill(child, Signal::SIGKILL);
            while waitpid(child, None) == Err(Errno::EINTR) {}
        }
        if !found {
            return;
        }
    }
}

/// Of every thread of this process. Empty on a kernel without `CONFIG_PROC_CHILDREN`.
fn children() -> Vec<Pid> {
    let tasks = format!("/proc/{}/task", process::id());
    let Ok(tasks) = fs::read_dir(tasks) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .map(Pid::from_raw)
                .collect::<Vec<_>>()
        })
        .collect()
}
