use std::sync::Arc;

use shim_reaper::ShimHandle;
use tokio_util::sync::CancellationToken;

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
}
