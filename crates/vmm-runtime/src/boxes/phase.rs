use std::sync::Arc;

use shim_reaper::ShimHandle;
use tokio_util::sync::CancellationToken;

use super::Outcome;
use crate::ShimHandler;

/// How far the shim of a box has come.
#[derive(Debug)]
pub(super) enum Phase {
    Down,
    Starting {
        interrupt: CancellationToken,
        shim: Option<ShimHandle>,
    },
    Up {
        shim: Arc<ShimHandler>,
        stop_requested: bool,
        /// Its watchdog hung up with an earlier runtime: it is about to end.
        ending: bool,
    },
    /// It has ended. That is reported once it is on disk.
    Ended {
        /// `None` of a start that failed.
        shim: Option<Arc<ShimHandler>>,
        outcome: Outcome,
    },
}
