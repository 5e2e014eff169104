use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use crate::ShimExit;
use crate::sync::{Mutex, MutexGuard};
use crate::wake_all::wake_all;

/// A stream of exits; [`ShimReaper::exits`](crate::ShimReaper::exits) and
/// [`exits_bounded`](crate::ShimReaper::exits_bounded) return it.
///
/// It yields each exit after its creation once, in the order in which the reaper processed them,
/// and ends when the reaper has shut down. Use it for code that handles the exits of all shims in one
/// place, and a [`ShimHandle`](crate::ShimHandle) for that of one shim.
///
/// The stream of `exits` buffers unread exits without a limit, about 150 bytes each, so that a slow
/// reader loses none. That of `exits_bounded` buffers a limited number: when it is full, the next
/// exit replaces the oldest one, as in [`tokio::sync::broadcast`], and [`dropped`](Self::dropped)
/// rises. Drop the stream if you no longer read it.
///
/// # Cancel safety
///
/// Dropping a future that reads from the stream, such as `next()` of `futures::StreamExt`, loses no
/// exit.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use futures::StreamExt;
/// use shim_reaper::{Command, ShimReaper};
///
/// let reaper = ShimReaper::start();
/// let exits = reaper.exits();
/// for code in ["exit 1", "exit 2"] {
///     reaper.spawn(Command::new("sh").args(["-c", code]))?.await?;
/// }
/// reaper.shutdown().await; // Ends the stream.
/// let codes: Vec<_> = exits.filter_map(async |exit| exit.code()).collect().await;
/// assert_eq!(codes, [1, 2]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Exits {
    reader: Arc<Reader>,
}

impl Exits {
    /// Returns how many exits this stream has dropped because its buffer was full. Always 0 for the
    /// stream of [`ShimReaper::exits`](crate::ShimReaper::exits).
    ///
    /// If it rises between two reads, exits are missing between those that were read. The handle of
    /// each shim still has its exit, and [`ShimReaper::registered`](crate::ShimReaper::registered)
    /// returns the shims that are left.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let exits = reaper.exits_bounded(1);
    /// reaper.spawn(Command::new("true"))?.await?;
    /// reaper.spawn(Command::new("true"))?.await?;
    /// assert_eq!(exits.dropped(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn dropped(&self) -> u64 {
        self.reader.queue().dropped
    }
}

impl Stream for Exits {
    type Item = ShimExit;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ShimExit>> {
        // Cloned, and the previous one dropped, without the lock: both may run code of the executor.
        let waker = cx.waker().clone();
        let mut queue = self.reader.queue();
        match queue.exits.pop_front() {
            Some(exit) => Poll::Ready(Some(exit)),
            None if queue.closed => Poll::Ready(None),
            None => {
                let previous = queue.waker.replace(waker);
                drop(queue);
                drop(previous);
                Poll::Pending
            }
        }
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        let closed = Queue {
            closed: true,
            ..Queue::default()
        };
        // The waker is dropped without the lock, because that may run code of its executor.
        let _unread = mem::replace(&mut *self.reader.queue(), closed);
    }
}

/// The readers of all [`Exits`] streams.
#[derive(Debug)]
pub(crate) struct Subscribers {
    /// `None` once the reaper has shut down.
    readers: Mutex<Option<Vec<Arc<Reader>>>>,
}

#[derive(Debug)]
struct Reader(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    exits: VecDeque<ShimExit>,
    capacity: usize,
    /// The number of exits that were dropped because of the capacity.
    dropped: u64,
    /// No exit follows: the reaper has shut down, or the stream is dropped.
    closed: bool,
    /// Of the task that waits for the next exit.
    waker: Option<Waker>,
}

impl Reader {
    fn new(capacity: usize) -> Self {
        Self(Mutex::new(Queue {
            capacity,
            ..Queue::default()
        }))
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, exit: ShimExit) {
        if self.exits.len() >= self.capacity {
            self.exits.pop_front();
            self.dropped += 1;
        }
        self.exits.push_back(exit);
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
        self.subscribe_bounded(usize::MAX)
    }

    /// Creates a stream that buffers up to `capacity` exits, at least one.
    pub(crate) fn subscribe_bounded(&self, capacity: usize) -> Exits {
        let reader = Arc::new(Reader::new(capacity.max(1)));
        match self.readers().as_mut() {
            Some(readers) => {
                readers.retain(|reader| !reader.queue().closed);
                readers.push(Arc::clone(&reader));
            }
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
            .any(|reader| !reader.queue().closed)
    }

    pub(crate) fn publish(&self, exit: ShimExit, wakers: &mut Vec<Waker>) {
        if let Some(readers) = self.readers().as_mut() {
            readers.retain(|reader| {
                let mut queue = reader.queue();
                if !queue.closed {
                    queue.push(exit);
                    wakers.extend(queue.waker.take());
                }
                !queue.closed
            });
        }
    }

    /// Ends every stream after its buffered exits.
    pub(crate) fn close(&self, wakers: &mut Vec<Waker>) {
        let readers = mem::take(&mut *self.readers());
        for reader in readers.iter().flatten() {
            let mut queue = reader.queue();
            queue.closed = true;
            wakers.extend(queue.waker.take());
        }
    }

    fn readers(&self) -> MutexGuard<'_, Option<Vec<Arc<Reader>>>> {
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

    #[test]
    fn dropped_streams_do_not_accumulate() {
        let subscribers = Subscribers::new();
        for _ in 0..10 {
            drop(subscribers.subscribe());
        }
        assert_eq!(subscribers.readers().as_ref().map(Vec::len), Some(1));
    }
}
