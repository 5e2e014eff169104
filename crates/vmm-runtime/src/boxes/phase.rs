use std::sync::Arc;

use shim_reaper::ShimHandle;
use tokio_util::sync::CancellationToken;

use super::Outcome;
use crate::ShimHandler;

/// The phase of a box's shim.
#[derive(Debug)]
pub(super) enum Phase {
    /// No shim, and no unreported exit.
    Idle,
    /// A start is in progress.
    Starting {
        /// Cancels the start.
        interrupt: CancellationToken,
        /// The shim, once it is spawned.
        shim: Option<ShimHandle>,
    },
    /// The payload is ready. The shim may have exited since.
    Running {
        shim: Arc<ShimHandler>,
        stop_requested: bool,
        /// Whether the watchdog hung up with an earlier runtime, so that the shim is about to end.
        watchdog_lost: bool,
    },
    /// The run has ended, and the exit is not reported yet. It is saved before it is reported.
    Exited {
        /// `None` for a failed start.
        shim: Option<Arc<ShimHandler>>,
        outcome: Outcome,
    },
}
