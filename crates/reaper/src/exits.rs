use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use pin_project::pin_project;

use crate::ShimExit;

/// Every exit from the moment of [`ShimReaper::exits`](crate::ShimReaper::exits) on, once each, in
/// the order in which the deaths were settled. Ends when the reaper has shut down.
///
/// Exits that are not read yet are kept in memory, about 150 bytes each, so that a slow reader
/// loses none; drop the stream to stop that.
///
/// # Cancel safety
///
/// Dropping a future that reads from the stream loses no exit.
#[pin_project]
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Exits {
    #[pin]
    receiver: UnboundedReceiver<ShimExit>,
}

impl Stream for Exits {
    type Item = ShimExit;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ShimExit>> {
        self.project().receiver.poll_next(cx)
    }
}

/// Everyone who reads [`Exits`].
#[derive(Debug)]
pub(crate) struct Subscribers {
    /// How many exits have been settled so far; each gets its number before any handle resolves.
    settled: AtomicU64,
    /// `None` once the reaper has shut down.
    readers: Mutex<Option<Vec<Reader>>>,
}

#[derive(Debug)]
struct Reader {
    /// The number of the first exit that was settled after it came.
    from: u64,
    sender: UnboundedSender<ShimExit>,
}

impl Subscribers {
    pub(crate) fn new() -> Self {
        Self {
            settled: AtomicU64::new(0),
            readers: Mutex::new(Some(Vec::new())),
        }
    }

    pub(crate) fn subscribe(&self) -> Exits {
        let (sender, receiver) = unbounded();
        if let Some(readers) = self.readers().as_mut() {
            let from = self.settled.load(Ordering::Acquire);
            readers.push(Reader { from, sender });
        }
        Exits { receiver }
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.settled.fetch_add(1, Ordering::AcqRel)
    }

    pub(crate) fn publish(&self, exits: &[(u64, ShimExit)]) {
        if let Some(readers) = self.readers().as_mut() {
            readers.retain(|reader| {
                exits
                    .iter()
                    .filter(|(number, _)| *number >= reader.from)
                    .all(|(_, exit)| reader.sender.unbounded_send(*exit).is_ok())
            });
        }
    }

    pub(crate) fn close(&self) {
        let readers = self.readers().take();
        drop(readers);
    }

    fn readers(&self) -> MutexGuard<'_, Option<Vec<Reader>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
