mod async_process;
mod ours;
mod polling_thread;
mod thread_per_child;
mod tokio_awaited;
mod tokio_dropped;

pub(crate) use async_process::AsyncProcess;
pub(crate) use ours::Ours;
pub(crate) use polling_thread::{POLLING_INTERVAL, PollingThread};
pub(crate) use thread_per_child::ThreadPerChild;
pub(crate) use tokio_awaited::TokioAwaited;
pub(crate) use tokio_dropped::TokioDropped;

use crate::column::Column;

/// The first thing that whoever awaits a child does afterwards.
pub(crate) type Then = Box<dyn FnOnce() + Send>;

/// A way to collect children.
pub(crate) trait Peer {
    fn column(&self) -> Column;

    /// Starts a sleeping child and leaves it to be collected. Nobody is told its end but `then`;
    /// a peer that has nobody told at all ignores it.
    fn start(&self, then: Option<Then>) -> u32;
}
