use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use pin_project::pin_project;
use vmm_protocol::Ending;

use crate::{BoxInfo, RuntimeMetricsStorage};

/// What happened to a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BoxChange {
    /// It exists.
    Created,
    /// Its payload runs.
    Started,
    /// It ended as asked, or by itself with code 0.
    Stopped,
    /// It could not be started, or ended in any other way.
    Failed,
    /// Its health check changed its mind, while it runs.
    Health,
    /// It exists no more.
    Removed,
}

/// A change of a box, and what the box was like right after it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BoxEvent {
    /// What happened.
    pub change: BoxChange,
    /// The box then.
    pub info: BoxInfo,
}

/// Every change of every box from the moment of [`VmmRuntime::events`](crate::VmmRuntime::events)
/// on, in order. Ends when the runtime has shut down.
///
/// Events that are not read yet are kept in memory, under a kilobyte each, so that a slow reader
/// loses none; drop the stream to stop that.
///
/// # Cancel safety
///
/// Dropping a future that reads from the stream loses no event.
#[pin_project]
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Events {
    #[pin]
    receiver: UnboundedReceiver<BoxEvent>,
}

impl Stream for Events {
    type Item = BoxEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BoxEvent>> {
        self.project().receiver.poll_next(cx)
    }
}

/// Tells everyone who wants to know what happens to the boxes: the readers of [`Events`], and the
/// metrics.
#[derive(Debug)]
pub(crate) struct Herald {
    /// `None` once the runtime has shut down.
    readers: Mutex<Option<Vec<UnboundedSender<BoxEvent>>>>,
    metrics: RuntimeMetricsStorage,
}

impl Herald {
    pub(crate) fn new(metrics: RuntimeMetricsStorage) -> Self {
        Self {
            readers: Mutex::new(Some(Vec::new())),
            metrics,
        }
    }

    fn readers(&self) -> MutexGuard<'_, Option<Vec<UnboundedSender<BoxEvent>>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subscribe(&self) -> Events {
        let (sender, receiver) = unbounded();
        if let Some(readers) = self.readers().as_mut() {
            readers.push(sender);
        }
        Events { receiver }
    }

    pub(crate) fn tell(&self, change: BoxChange, info: BoxInfo) {
        let counter = match change {
            BoxChange::Created => Some(&self.metrics.boxes_created_total),
            BoxChange::Started => Some(&self.metrics.num_running_boxes),
            BoxChange::Stopped => Some(&self.metrics.boxes_stopped_total),
            BoxChange::Failed => Some(&self.metrics.boxes_failed_total),
            BoxChange::Health | BoxChange::Removed => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if change == BoxChange::Failed && info.ending.as_ref().is_none_or(Ending::is_crash) {
            let crashed = &self.metrics.boxes_crashed_total;
            crashed.fetch_add(1, Ordering::Relaxed);
        }
        tracing::info!(
            id = info.id,
            name = info.name,
            ?change,
            error = info.error,
            "box"
        );
        if let Some(readers) = self.readers().as_mut() {
            let event = BoxEvent { change, info };
            readers.retain(|reader| reader.unbounded_send(event.clone()).is_ok());
        }
    }

    /// A box runs, and nobody has started it.
    pub(crate) fn recovered(&self) {
        self.metrics
            .num_running_boxes
            .fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn run_is_over(&self) {
        self.metrics
            .num_running_boxes
            .fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn close(&self) {
        *self.readers() = None;
    }
}
