use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures::Stream;

use crate::ShimExit;
use crate::sync::{AtomicWaker, Mutex, MutexGuard};
use crate::wake_all::wake_all;

/// A stream of exits; [`ShimReaper::exits`](crate::ShimReaper::exits) returns it.
///
/// It yields each exit from its creation on once, in the order in which the reaper processed them,
/// and ends when the reaper has shut down.
///
/// The stream buffers unread exits without a limit, about 150 bytes each, so that a slow reader
/// loses none. Drop the stream if you no longer read it.
///
/// # Cancel safety
///
/// Dropping a future that reads from the stream, such as `next()`, loses no exit.
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct Exits {
    reader: Arc<Reader>,
}

impl Stream for Exits {
    type Item = ShimExit;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ShimExit>> {
        // Registered before the queue is checked, so that a later exit wakes the task.
        self.reader.waker.register(cx.waker());
        let mut queue = self.reader.queue();
        match queue.exits.pop_front() {
            Some(exit) => Poll::Ready(Some(exit)),
            None if queue.closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        // Dropping a waker may run code of its executor, which must not happen while the reaper
        // publishes.
        drop(self.reader.waker.take());
    }
}

/// The readers of all [`Exits`] streams.
#[derive(Debug)]
pub(crate) struct Subscribers {
    /// `None` once the reaper has shut down.
    readers: Mutex<Option<Vec<Weak<Reader>>>>,
}

#[derive(Debug, Default)]
struct Reader {
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Queue {
    exits: VecDeque<ShimExit>,
    closed: bool,
}

impl Reader {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The callers of `publish` and `close` wake the wakers after they have released every lock.
impl Subscribers {
    pub(crate) fn new() -> Self {
        Self {
            readers: Mutex::new(Some(Vec::new())),
        }
    }

    pub(crate) fn subscribe(&self) -> Exits {
        let reader = Arc::new(Reader::default());
        match self.readers().as_mut() {
            Some(readers) => readers.push(Arc::downgrade(&reader)),
            None => reader.queue().closed = true,
        }
        Exits { reader }
    }

    /// Returns whether any stream exists.
    pub(crate) fn has_any(&self) -> bool {
        let readers = self.readers();
        readers
            .iter()
            .flatten()
            .any(|reader| reader.strong_count() > 0)
    }

    pub(crate) fn publish(&self, exit: ShimExit, wakers: &mut Vec<Waker>) {
        if let Some(readers) = self.readers().as_mut() {
            readers.retain(|reader| {
                let Some(reader) = reader.upgrade() else {
                    return false;
                };
                reader.queue().exits.push_back(exit);
                wakers.extend(reader.waker.take());
                true
            });
        }
    }

    /// Ends every stream after its buffered exits.
    pub(crate) fn close(&self, wakers: &mut Vec<Waker>) {
        let readers = mem::take(&mut *self.readers());
        for reader in readers.iter().flatten().filter_map(Weak::upgrade) {
            reader.queue().closed = true;
            wakers.extend(reader.waker.take());
        }
    }

    fn readers(&self) -> MutexGuard<'_, Option<Vec<Weak<Reader>>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        // The last handle is dropped, and the reaper did not shut down.
        let mut wakers = Vec::new();
        self.close(&mut wakers);
        wake_all(wakers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_stream_does_not_count() {
        let subscribers = Subscribers::new();
        assert!(!subscribers.has_any());
        let exits = subscribers.subscribe();
        assert!(subscribers.has_any());
        drop(exits);
        assert!(!subscribers.has_any());
    }
}
