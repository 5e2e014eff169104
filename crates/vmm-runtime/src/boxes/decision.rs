//! What the state of a box asks the operations to do.

use std::sync::Arc;
use std::time::Duration;

use shim_reaper::ShimHandle;
use tokio_util::sync::CancellationToken;
use vmm_protocol::InstanceSpec;

use crate::ShimHandler;

/// What a start must do, given the current state of the box.
#[derive(Debug)]
pub(crate) enum StartDecision {
    /// Return: the box is running.
    Running,
    /// Wait for the end of this shim first: it lost its watchdog, or has just exited.
    AwaitExit(Arc<ShimHandler>),
    /// Launch a shim. The box is now in the phase `Starting`.
    Launch {
        spec: Box<InstanceSpec>,
        /// Cancelled when the start must stop.
        interrupt: CancellationToken,
    },
    /// Clean up after the previous run first.
    NeedsCleanup,
    /// Fail: a stop was requested after this start, or the restart is not due any more.
    Cancelled,
}

/// A start of a box.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StartRequest {
    /// The number of stop requests when the start was requested.
    pub(crate) stop_epoch: u64,
    /// Whether the restart policy of the box asked for it, in place of a user.
    pub(crate) is_restart: bool,
}

impl StartRequest {
    /// Creates the request of a user.
    pub(crate) fn by_user(stop_epoch: u64) -> Self {
        Self {
            stop_epoch,
            is_restart: false,
        }
    }

    /// Creates the request of the restart policy.
    pub(crate) fn restart(stop_epoch: u64) -> Self {
        Self {
            stop_epoch,
            is_restart: true,
        }
    }
}

/// A shim that must end with the runtime.
#[derive(Debug)]
pub(crate) struct ShutdownTarget {
    pub(crate) shim: ShimHandle,
    pub(crate) grace: Duration,
}
