use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use vmm_runtime::{Events, ImageTable, VmmRuntime};

use super::ApiError;
use crate::wire::{BoxEvent, ErrorCode};

/// The state that the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct ApiState {
    pub(crate) runtime: VmmRuntime,
    pub(crate) images: Arc<ImageTable>,
    pub(crate) events: Arc<EventHub>,
    /// One permit per [stream](super::Limits::streams).
    pub(crate) streams: Arc<Semaphore>,
    /// [`Limits::attach_timeout`](super::Limits::attach_timeout).
    pub(crate) attach_timeout: Duration,
    /// Times that the server could not accept a connection.
    pub(crate) accept_failures: Arc<AtomicU64>,
    /// [`Limits::reaper_stall_timeout`](super::Limits::reaper_stall_timeout).
    pub(crate) reaper_stall_timeout: Duration,
    /// [`Limits::apply_default_limits`](super::Limits::apply_default_limits).
    pub(crate) apply_default_limits: bool,
    /// Cancelled when the server shuts down.
    pub(crate) closing: CancellationToken,
}

impl ApiState {
    /// Returns the permit for a stream.
    pub(crate) fn stream_permit(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        permit.map_err(|_| Self::too_many_streams())
    }

    pub(crate) fn too_many_streams() -> ApiError {
        let message = "too many clients read events or logs, are attached to executions, or transfer \
                       files; try again later";
        ApiError::new(ErrorCode::ResourceExhausted, message)
    }
}

/// Distributes the events of the VMM runtime to all event readers, which share one bounded buffer.
#[derive(Debug)]
pub(crate) struct EventHub {
    /// Only the task has a sender, so that all receivers end with the VMM runtime.
    receiver: broadcast::Receiver<Arc<BoxEvent>>,
    _forwarder: AbortOnDropHandle<()>,
}

/// Events that are kept for slow readers.
const EVENT_BUFFER_LEN: usize = 1024;

impl EventHub {
    pub(crate) fn new(mut events: Events) -> Self {
        let (sender, receiver) = broadcast::channel(EVENT_BUFFER_LEN);
        let forwarder = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                // Fails while there is no reader; a later event may have one.
                let _ = sender.send(Arc::new(event.into()));
            }
        });
        Self {
            receiver,
            _forwarder: AbortOnDropHandle::new(forwarder),
        }
    }

    /// Returns a receiver of all events from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<BoxEvent>> {
        self.receiver.resubscribe()
    }
}
