use std::time::Duration;

use shim_reaper::ShimHandle;

/// A shim that is to end with the runtime.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) shim: ShimHandle,
    pub(crate) grace: Duration,
}
