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
    /// Fail: a stop was requested after this start.
    Cancelled,
}

/// A shim that must end with the runtime.
#[derive(Debug)]
pub(crate) struct ShutdownTarget {
    pub(crate) shim: ShimHandle,
    pub(crate) grace: Duration,
}
