use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
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

/// Everyone who reads [`Exits`]; `None` once the reaper has shut down.
#[derive(Debug)]
pub(crate) struct Subscribers(Mutex<Option<Vec<UnboundedSender<ShimExit>>>>);

impl Subscribers {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }

    pub(crate) fn subscribe(&self) -> Exits {
        let (sender, receiver) = unbounded();
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(readers) = readers.as_mut() {
            readers.push(sender);
        }
        Exits { receiver }
    }

    pub(crate) fn publish(&self, exits: &[ShimExit]) {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(readers) = readers.as_mut() {
            readers.retain(|reader| {
                exits
                    .iter()
                    .all(|exit| reader.unbounded_send(*exit).is_ok())
            });
        }
    }

    pub(crate) fn close(&self) {
        let readers = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(readers);
    }
}
