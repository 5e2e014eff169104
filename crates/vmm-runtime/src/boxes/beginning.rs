use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use vmm_protocol::InstanceSpec;

use crate::ShimHandler;

/// What a start finds.
#[derive(Debug)]
pub(crate) enum Beginning {
    Running,
    /// The shim of an earlier runtime, whose end has to be awaited.
    After(Arc<ShimHandler>),
    Begun {
        spec: Box<InstanceSpec>,
        /// Cancelled when the start is to be given up.
        interrupt: CancellationToken,
    },
    /// The last run has just ended, and what it has left is still to be cleared away.
    Untidy,
    /// It has been asked to stop since.
    GivenUp,
}
