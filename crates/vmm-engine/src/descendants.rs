//! Kills and reaps the descendants of a payload.
//!
//! A shim is their subreaper (`PR_SET_CHILD_SUBREAPER`, `prctl(2)`), so the kernel makes orphans
//! its children.

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vmm_protocol::procfs;

/// How long to wait for killed processes. A process in an uninterruptible sleep can take longer.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Kills and reaps all children of the calling process except one, and all descendants that the
/// kernel then makes its children.
///
/// Waits for up to one second. Leaves processes that have not exited by then, and processes that
/// the caller is not permitted to kill.
pub fn kill_all_except(except: Option<Pid>) {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    loop {
        let children = children().filter(|child| Some(*child) != except);
        // The children are not reaped yet, so the kernel cannot have reused their pids.
        let killed: Vec<_> = children
            .filter(|child| kill(*child, Signal::SIGKILL) != Err(Errno::EPERM))
            .collect();
        let mut is_any_alive = false;
        for child in &killed {
            let status = waitpid(*child, Some(WaitPidFlag::WNOHANG));
            is_any_alive |= status == Ok(WaitStatus::StillAlive);
        }
        if killed.is_empty() || Instant::now() >= deadline {
            return;
        }
        if is_any_alive {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Reaps all zombies among the children of the calling process except one. Returns true if there
/// was any.
pub fn reap_all_except(except: Pid) -> bool {
    let reaped = children().filter(|child| *child != except).filter(|child| {
        let status = waitpid(*child, Some(WaitPidFlag::WNOHANG));
        !matches!(status, Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD))
    });
    reaped.count() > 0
}

/// Returns the children of this process. Returns none on a kernel that does not list them.
fn children() -> impl Iterator<Item = Pid> {
    let children = procfs::children(process::id()).unwrap_or_default();
    children
        .into_iter()
        .map(|pid| Pid::from_raw(pid.cast_signed()))
}
