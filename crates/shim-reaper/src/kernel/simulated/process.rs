use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use super::mechanism::Mechanism;
use crate::Signal;

/// The kernel interfaces that the simulation offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// `pidfd_open`, Linux 5.3.
    pub(crate) pidfds: bool,
    /// `P_PIDFD`, Linux 5.4.
    pub(crate) wait_by_pidfd: bool,
    /// `POLLHUP` of a reaped process's pidfd, Linux 6.9.
    pub(crate) hangup: bool,
    /// `PIDFD_INFO_EXIT`, Linux 6.15.
    pub(crate) exit_info: bool,
    /// Watches report events; otherwise every event is lost.
    pub(crate) events: bool,
    /// Orphans are reparented to this process.
    pub(crate) subreaper: bool,
    /// SIGCHLD is ignored, so that the kernel reaps the children of this process as they exit.
    pub(crate) reaps_children: bool,
    /// io_uring with `IORING_OP_WAITID`, Linux 6.7, and a reaper that uses it.
    pub(crate) io_uring: bool,
    /// What the kernel does not do, although the reaper relies on it.
    pub(crate) switched_off: Option<Mechanism>,
}

impl Features {
    pub(crate) fn lacks(self, mechanism: Mechanism) -> bool {
        self.switched_off == Some(mechanism)
    }
}

#[cfg(test)]
impl Features {
    pub(crate) const LATEST: Self = Self {
        pidfds: true,
        wait_by_pidfd: true,
        hangup: true,
        exit_info: true,
        events: true,
        subreaper: true,
        reaps_children: false,
        io_uring: false,
        switched_off: None,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessState {
    Running,
    Zombie(i32),
    /// Dead, and not waitable for its parent until its tracer has waited.
    Traced(i32),
    /// A foreign wait has started to reap it, and the kernel has not published its status yet.
    BeingReaped(i32),
    Reaped(i32),
}

/// The parent of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// This process, which has the reaper.
    This,
    Process(usize),
    Init,
}

/// Whose wait has reaped a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitBy {
    Reaper,
    Other,
}

/// The signals that a process survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resistance {
    None,
    Sigterm,
    /// It is stuck in the kernel.
    Sigkill,
}

impl Resistance {
    pub(super) fn survives(self, signal: Signal) -> bool {
        match self {
            Self::None => false,
            Self::Sigterm => signal == Signal::SIGTERM,
            Self::Sigkill => true,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: Parent,
    pub(crate) group: Option<u32>,
    /// Whether another thread than the main thread of this process has forked it. Of the other
    /// children, procfs cannot tell which of them are orphans.
    pub(crate) forked_by_thread: bool,
    /// Whether this process may read its exit code in procfs.
    pub(crate) inspectable: bool,
    pub(crate) resistance: Resistance,
    pub(crate) state: ProcessState,
    /// Whether a tracer has held its zombie.
    pub(crate) was_traced: bool,
    pub(crate) died_at: Option<Instant>,
    /// When a wait in two steps began.
    pub(crate) reap_began_at: Option<Instant>,
    pub(crate) reaped_at: Option<Instant>,
    pub(crate) reaped_by: Option<WaitBy>,
}

impl ProcessState {
    pub(crate) fn is_running(self) -> bool {
        self == Self::Running
    }

    pub(crate) fn is_reaped(self) -> bool {
        matches!(self, Self::Reaped(_))
    }

    /// Returns the wait status of a process that is dead.
    pub(crate) fn status(self) -> Option<ExitStatus> {
        match self {
            Self::Running => None,
            Self::Zombie(code)
            | Self::Traced(code)
            | Self::BeingReaped(code)
            | Self::Reaped(code) => Some(wait_status(code)),
        }
    }
}

/// Returns the wait status for an exit code, or for a signal if the code is negative.
pub(super) fn wait_status(code: i32) -> ExitStatus {
    ExitStatus::from_raw(if code < 0 { -code } else { code << 8 })
}
