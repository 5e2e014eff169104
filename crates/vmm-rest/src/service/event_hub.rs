use std::sync::Arc;

use futures::StreamExt;
use tokio::sync::broadcast;
use tokio_util::task::AbortOnDropHandle;
use vmm_runtime::Events;

use crate::wire::BoxEvent;

/// Tells every reader of events what happens to the boxes. What a slow reader has not read yet is
/// kept up to a limit that all readers share.
#[derive(Debug)]
pub(crate) struct EventHub {
    /// Has no sender: that is the task's, and ends with the runtime.
    receiver: broadcast::Receiver<Arc<BoxEvent>>,
    _pump: AbortOnDropHandle<()>,
}

const KEPT: usize = 1024;

impl EventHub {
    pub(crate) fn new(mut events: Events) -> Self {
        let (sender, receiver) = broadcast::channel(KEPT);
        let pump = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                // Nobody reads them now? Somebody may the next one.
                let _ = sender.send(Arc::new(event.into()));
            }
        });
        Self {
            receiver,
            _pump: AbortOnDropHandle::new(pump),
        }
    }

    /// Everything from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<BoxEvent>> {
        self.receiver.resubscribe()
    }
}
