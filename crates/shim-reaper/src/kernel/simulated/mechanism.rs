use std::fmt::{self, Display, Formatter};

/// What holds a promise of the reaper. A simulation without one of them shows that it would notice.
///
/// The code of the reaper stays the same: without a mechanism, the simulated kernel or the simulation does
/// not do what the mechanism relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The owner of a registered process gets its grace period.
    OwnerGrace,
    /// The pidfd of a child is open before any code can wait for the child.
    PidfdFromBirth,
    /// After a foreign wait, the children of std commands open their own pidfds.
    ForeignWaitDetection,
    /// A wait by pidfd is for the process of the pidfd.
    PidfdInWaits,
    /// A signal by pidfd goes to the process of the pidfd.
    PidfdInSignals,
    /// A pidfd shows that its process has been reaped.
    PidfdInChecks,
    /// The start time distinguishes processes that have no pidfd.
    StartTime,
    /// Sweeps check a few watched shims in turn.
    SpotCheck,
    /// The worker starts again after a panic.
    Restart,
    /// The final drain reaps what has exited.
    FinalDrain,
    /// The final drain ends the requests of io_uring.
    RequestsEnd,
    /// A pidfd stays open until its request has ended.
    RequestPidfds,
    /// A sweep takes the status with which the kernel has reaped a process for a request.
    RequestStatus,
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::OwnerGrace,
        Self::PidfdFromBirth,
        Self::ForeignWaitDetection,
        Self::PidfdInWaits,
        Self::PidfdInSignals,
        Self::PidfdInChecks,
        Self::StartTime,
        Self::SpotCheck,
        Self::Restart,
        Self::FinalDrain,
        Self::RequestsEnd,
        Self::RequestPidfds,
        Self::RequestStatus,
    ];

    /// Returns whether only a reaper with io_uring has it.
    pub fn needs_io_uring(self) -> bool {
        matches!(
            self,
            Self::RequestsEnd | Self::RequestPidfds | Self::RequestStatus
        )
    }
}

impl Display for Mechanism {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnerGrace => "grace period of the owner",
            Self::PidfdFromBirth => "pidfd from birth",
            Self::ForeignWaitDetection => "detection of foreign waits",
            Self::PidfdInWaits => "pidfd in waits",
            Self::PidfdInSignals => "pidfd in signals",
            Self::PidfdInChecks => "pidfd in checks for a recycled pid",
            Self::StartTime => "start time without a pidfd",
            Self::SpotCheck => "rotating spot check",
            Self::Restart => "restart after a panic",
            Self::FinalDrain => "final drain",
            Self::RequestsEnd => "io_uring: end of the requests in the final drain",
            Self::RequestPidfds => "io_uring: pidfd open until its request has ended",
            Self::RequestStatus => "io_uring: status of what the kernel has reaped",
        })
    }
}
