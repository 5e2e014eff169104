use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use vmm_runtime::VmmRuntime;

use super::event_hub::EventHub;
use crate::images::ImageTable;

/// What the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct ApiState {
    pub(crate) runtime: VmmRuntime,
    pub(crate) images: Arc<ImageTable>,
    pub(crate) events: Arc<EventHub>,
    /// One for each reader of events that there may be.
    pub(crate) event_readers: Arc<Semaphore>,
    /// How often no connection could be accepted.
    pub(crate) accept_failures: Arc<AtomicU64>,
    /// See [`Limits`](super::Limits).
    pub(crate) reaper_stall_timeout: Duration,
    /// See [`Limits`](super::Limits).
    pub(crate) apply_default_limits: bool,
    /// Cancelled when the server is to end.
    pub(crate) closing: CancellationToken,
}
