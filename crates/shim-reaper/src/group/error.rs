use std::io;

use crate::ReaperClosed;

/// The error of [`send_group_signal`](crate::ShimHandle::send_group_signal),
/// [`kill_group`](crate::ShimHandle::kill_group) and [`stop_group`](crate::ShimHandle::stop_group).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use shim_reaper::{Command, ShimReaper};
/// # use shim_reaper::GroupError;
/// # let reaper = ShimReaper::start();
///
/// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
/// let error = shim.kill_group().await.unwrap_err();
/// assert!(matches!(error, GroupError::NoGroup { pid } if pid == shim.id()));
/// # shim.start_kill()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The shim has no group of its own.
    #[error(
        "the shim with pid {pid} has no group; spawn it with SpawnOptions::process_group(0) or \
         Command::cgroup"
    )]
    NoGroup {
        /// The pid of the shim.
        pid: u32,
    },
    /// No process is left in the group.
    #[error("the group of the shim with pid {pid} is empty")]
    Empty {
        /// The pid of the shim.
        pid: u32,
    },
    /// The shim has been reaped, and the kernel, before Linux 6.9, cannot signal its process group
    /// without the risk that the group is a new one with the same number.
    #[error(
        "process group {pid} may be another one, because the shim that led it has been reaped; \
         use Linux 6.9, or a control group, or signal the group while the shim runs"
    )]
    Unidentified {
        /// The pid of the shim.
        pid: u32,
    },
    /// A process in the group cannot be signalled.
    #[error("pid {pid} in the group of the shim cannot be signalled; CAP_KILL permits it")]
    Denied {
        /// The pid of that process.
        pid: u32,
        /// The error of `kill(2)`.
        source: io::Error,
    },
    /// A process in the group still runs 5 seconds after the SIGKILL.
    #[error(
        "pid {pid} in the group of the shim still runs after SIGKILL; it may be stuck in the \
         kernel, see /proc/{pid}/stack"
    )]
    StillRunning {
        /// The pid of that process, or 0 if it is in another PID namespace.
        pid: u32,
    },
    /// A system call failed.
    #[error("cannot signal the group of the shim with pid {pid}")]
    Io {
        /// The pid of the shim.
        pid: u32,
        /// The error of the system call.
        source: io::Error,
    },
    /// The reaper shut down before the exit of the shim was known.
    #[error(transparent)]
    Closed(#[from] ReaperClosed),
}
