//! Kills and reaps the descendants of a payload.
//!
//! A shim is their subreaper (`PR_SET_CHILD_SUBREAPER`, `prctl(2)`), so the kernel makes orphans
//! its children.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{self, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, waitid, waitpid};
use vmm_protocol::procfs;

/// How long to wait for killed processes. A process in an uninterruptible sleep can take longer.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The children whose exit status is kept.
type Kept = BTreeMap<u32, KeptStatus>;

#[derive(Clone, Copy, Debug)]
enum KeptStatus {
    Running,
    /// It ended by itself, and is reaped.
    Ended(ExitStatus),
    /// [`kill_all_except`] has killed it: its status shows nothing.
    Killed,
}

/// A process has one set of children.
static KEPT: Mutex<Kept> = Mutex::new(BTreeMap::new());

/// Keeps the exit status of a child for [`take_status`], although any thread of the shim can reap it.
/// Call it before a thread that reaps could do so.
pub(crate) fn keep_status(child: u32) {
    kept().insert(child, KeptStatus::Running);
}

/// Returns the exit status of a [`Helper`](crate::Helper), and reaps it if no other thread has. Returns
/// `None` if it still runs, or [`kill_all_except`] has killed it.
///
/// # Errors
///
/// `ECHILD` if the status is lost, because an engine has reaped the helper without this module.
pub fn take_status(child: u32) -> io::Result<Option<ExitStatus>> {
    let mut kept = kept();
    let status = match kept.get(&child) {
        Some(KeptStatus::Ended(status)) => Some(*status),
        Some(KeptStatus::Killed) => None,
        _ => try_wait(&mut kept, Pid::from_raw(child.cast_signed()))?,
    };
    if status.is_some() {
        kept.remove(&child);
    }
    Ok(status)
}

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills and reaps all children of the calling process except one, and all descendants that the
/// kernel then makes its children.
///
/// Waits for up to one second. Leaves processes that have not exited by then, and processes that
/// the caller is not permitted to kill.
///
/// Passes the exit status of each process to `report`.
pub fn kill_all_except(except: Option<Pid>, mut report: impl FnMut(u32, ExitStatus)) {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    loop {
        let killed = kill_children(except);
        let mut is_any_alive = false;
        for child in &killed {
            is_any_alive |= reap(*child, &mut report) == Ok(false);
        }
        if killed.is_empty() || Instant::now() >= deadline {
            return;
        }
        if is_any_alive {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Kills all children of the calling process except one. Returns those that it is permitted to kill.
fn kill_children(except: Option<Pid>) -> Vec<Pid> {
    // No other thread reaps a child after it is listed, so the kernel cannot reuse its pid.
    let mut kept = kept();
    children()
        .filter(|child| Some(*child) != except)
        .filter(|child| !has_ended(&mut kept, *child))
        .filter(|child| kill(*child, Signal::SIGKILL) != Err(Errno::EPERM))
        .collect()
}

/// Returns whether a child whose status is kept has ended by itself, which is reaped then. Otherwise, notes that it is
/// killed.
fn has_ended(kept: &mut Kept, child: Pid) -> bool {
    let pid = child.as_raw().cast_unsigned();
    if !matches!(kept.get(&pid), Some(KeptStatus::Running)) {
        return false;
    }
    let has_ended = matches!(try_wait(kept, child), Ok(Some(_)));
    if !has_ended {
        kept.insert(pid, KeptStatus::Killed);
    }
    has_ended
}

/// Reaps all zombies among the children of the calling process except one, and passes their exit
/// statuses to `report`. Returns true if there was any.
pub(crate) fn reap_all_except(except: Pid, mut report: impl FnMut(u32, ExitStatus)) -> bool {
    let reaped = children()
        .filter(|child| *child != except)
        .filter(|child| reap(*child, &mut report) == Ok(true));
    reaped.count() > 0
}

/// Reaps a child if it is a zombie. Returns false if it still runs.
///
/// Passes the exit status to `report` before that: when the child is reaped, the kernel can use its pid
/// again, and a signal that another thread sends would reach another process.
///
/// # Errors
///
/// The error of `waitpid(2)`, if the process is not a child any more.
pub(crate) fn reap(
    child: Pid,
    report: &mut impl FnMut(u32, ExitStatus),
) -> rustix::io::Result<bool> {
    let mut kept = kept();
    let pid = rustix::process::Pid::from_raw(child.as_raw()).ok_or(rustix::io::Errno::CHILD)?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let Some(status) = waitid(WaitId::Pid(pid), options)? else {
        return Ok(false);
    };
    report(child.as_raw().cast_unsigned(), exit_status(&status));
    Ok(try_wait(&mut kept, child)?.is_some())
}

fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    const CORE_DUMPED: i32 = 0x80;
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (None, Some(signal)) if status.dumped() => signal | CORE_DUMPED,
        (None, signal) => signal.unwrap_or_default(),
    };
    ExitStatus::from_raw(raw)
}

/// Reaps a child if it is a zombie, and keeps its status if it is to be kept. The caller holds the lock,
/// so that no other thread can find the child reaped and its status not kept.
fn try_wait(kept: &mut Kept, child: Pid) -> rustix::io::Result<Option<ExitStatus>> {
    let pid = rustix::process::Pid::from_raw(child.as_raw());
    let Some((_, status)) = waitpid(pid, WaitOptions::NOHANG)? else {
        return Ok(None);
    };
    let status = ExitStatus::from_raw(status.as_raw());
    if let Some(slot @ KeptStatus::Running) = kept.get_mut(&child.as_raw().cast_unsigned()) {
        *slot = KeptStatus::Ended(status);
    }
    Ok(Some(status))
}

/// Returns the children of this process. Returns none on a kernel that does not list them.
fn children() -> impl Iterator<Item = Pid> {
    let children = procfs::children(process::id()).unwrap_or_default();
    children
        .into_iter()
        .map(|pid| Pid::from_raw(pid.cast_signed()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_status_is_reported_before_the_child_is_reaped() {
        for script in ["exit 42", "kill -9 $$", "kill -40 $$"] {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = Pid::from_raw(child.id().cast_signed());
            let mut reported = None;
            while reap(pid, &mut |reaped, status| {
                assert_eq!(reaped, child.id());
                assert_eq!(kill(pid, None), Ok(()));
                reported = Some(status);
            }) == Ok(false)
            {
                thread::sleep(POLL_INTERVAL);
            }
            let status = reported.unwrap();
            let expected = match script {
                "exit 42" => (Some(42), None),
                "kill -9 $$" => (None, Some(9)),
                _ => (None, Some(40)),
            };
            assert_eq!((status.code(), status.signal()), expected);
            assert_eq!(kill(pid, None), Err(Errno::ESRCH));
            assert!(child.try_wait().is_err());
        }
    }
}
