use std::time::Duration;

use shim_reaper::ShimHandle;

/// A shim that must end with the runtime.
#[derive(Debug)]
pub(crate) struct ShutdownTarget {
    pub(crate) shim: ShimHandle,
    pub(crate) grace: Duration,
}
