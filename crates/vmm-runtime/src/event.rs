use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use pin_project::pin_project;
use serde::Serialize;
use vmm_protocol::{BootTimes, Ending};

use crate::metrics::ExecutionCounters;
use crate::{BoxInfo, RuntimeMetricsStorage};

/// A kind of change of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BoxChange {
    /// The box was created.
    Created,
    /// The box has a shim, whose payload is not ready yet. `Started`, `Failed` or `Cancelled`
    /// follows, or the same change with another shim if a warm one did not take the box.
    Starting,
    /// The payload is ready.
    Started,
    /// A stop or a removal cancelled the start, and the box is as it was before; or it cancelled the
    /// restart that was due, and the box stays as it is.
    Cancelled,
    /// The payload is frozen.
    Paused,
    /// The payload continues after `Paused`. A stop lets it continue, too, without this change.
    Resumed,
    /// The box ended on request, or by itself with exit code 0. Nothing of the run is running any
    /// more, unless a process survives SIGKILL for 10 s.
    Stopped,
    /// The box could not be started, or ended in any other way. As with `Stopped`, nothing of the
    /// run is running any more.
    Failed,
    /// The health state changed while the box was running.
    Health,
    /// The box was removed.
    Removed,
}

/// A change of a box, with the state of the box right after the change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BoxEvent {
    /// The kind of change.
    pub change: BoxChange,
    /// The state of the box right after the change.
    pub info: BoxInfo,
}

/// A stream of every change of every box since the call of
/// [`VmmRuntime::events`](crate::VmmRuntime::events), in order. It ends when the VMM runtime has
/// shut down.
///
/// Unread events stay in memory, under a kilobyte each, so that a slow reader loses none. Drop the
/// stream to free them.
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

/// Publishes the changes of boxes to the readers of [`Events`] and counts them in the metrics.
#[derive(Debug)]
pub(crate) struct EventBus {
    /// `None` after the runtime has shut down.
    readers: Mutex<Option<Vec<UnboundedSender<BoxEvent>>>>,
    metrics: RuntimeMetricsStorage,
}

impl EventBus {
    pub(crate) fn new(metrics: RuntimeMetricsStorage) -> Self {
        Self {
            readers: Mutex::new(Some(Vec::new())),
            metrics,
        }
    }

    fn readers(&self) -> MutexGuard<'_, Option<Vec<UnboundedSender<BoxEvent>>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a stream of all changes from now on.
    pub(crate) fn subscribe(&self) -> Events {
        let (sender, receiver) = unbounded();
        if let Some(readers) = self.readers().as_mut() {
            readers.push(sender);
        }
        Events { receiver }
    }

    /// Counts, logs and sends one change.
    pub(crate) fn publish(&self, change: BoxChange, info: BoxInfo) {
        let counter = match change {
            BoxChange::Created => Some(&self.metrics.boxes_created_total),
            BoxChange::Started => Some(&self.metrics.num_running_boxes),
            BoxChange::Stopped => Some(&self.metrics.boxes_stopped_total),
            BoxChange::Failed => Some(&self.metrics.boxes_failed_total),
            BoxChange::Starting
            | BoxChange::Cancelled
            | BoxChange::Paused
            | BoxChange::Resumed
            | BoxChange::Health
            | BoxChange::Removed => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if change == BoxChange::Failed && info.ending.as_ref().is_none_or(Ending::is_crash) {
            let crashed = &self.metrics.boxes_crashed_total;
            crashed.fetch_add(1, Ordering::Relaxed);
        }
        if change == BoxChange::Failed && info.ending.as_ref().is_some_and(Ending::is_of_helper) {
            let failures = &self.metrics.helper_failures_total;
            failures.fetch_add(1, Ordering::Relaxed);
        }
        tracing::info!(
            id = info.id.as_str(),
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

    /// Counts a running box that an earlier runtime started.
    pub(crate) fn run_recovered(&self) {
        self.metrics
            .num_running_boxes
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Counts how long a start took.
    pub(crate) fn box_started(&self, after: Duration, boot: Option<BootTimes>) {
        self.metrics.observe_start(after, boot);
    }

    /// Returns the counters of a new box for the commands that run in it.
    pub(crate) fn execution_counters(&self) -> Arc<ExecutionCounters> {
        let of_runtime = Arc::clone(&self.metrics.executions);
        Arc::new(ExecutionCounters::of_box(of_runtime))
    }

    /// Counts a restart by the policy of a box.
    pub(crate) fn restarted(&self) {
        self.metrics
            .boxes_restarted_total
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of a running box.
    pub(crate) fn run_ended(&self) {
        self.metrics
            .num_running_boxes
            .fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends all streams.
    pub(crate) fn close(&self) {
        *self.readers() = None;
    }
}
