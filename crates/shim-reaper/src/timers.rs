use std::collections::BTreeMap;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio::time::Instant;

/// The timers that the worker drives. Unlike a timer of tokio, they work in every executor.
#[derive(Debug, Default)]
pub(crate) struct Timers(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    last_key: u64,
    /// By the time when they expire, and a unique key.
    wakers: BTreeMap<(Instant, u64), Waker>,
}

impl Timers {
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let queue = self.queue();
        queue.wakers.first_key_value().map(|(key, _)| key.0)
    }

    /// Removes the expired timers. The caller wakes the wakers after it has released every lock.
    pub(crate) fn take_expired(&self, wakers: &mut Vec<Waker>) {
        let mut queue = self.queue();
        if queue.wakers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(first) = queue.wakers.first_entry() {
            if first.key().0 > now {
                return;
            }
            wakers.push(first.remove());
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future that is ready after a time. Only a running worker drives it.
#[derive(Debug)]
pub(crate) struct Sleep<'a> {
    timers: &'a Timers,
    wake_worker: &'a Notify,
    /// `None` if it is too far away for an `Instant`.
    deadline: Option<Instant>,
    key: Option<(Instant, u64)>,
}

impl<'a> Sleep<'a> {
    pub(crate) fn new(
        timers: &'a Timers,
        wake_worker: &'a Notify,
        deadline: Option<Instant>,
    ) -> Self {
        Self {
            timers,
            wake_worker,
            deadline,
            key: None,
        }
    }
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        // Cloned, and dropped where it is replaced, without the lock: both may run code of the executor.
        let waker = cx.waker().clone();
        let mut queue = self.timers.queue();
        if let Some(key) = self.key {
            // The worker removes the timer when it expires.
            let Some(stored) = queue.wakers.get_mut(&key) else {
                return Poll::Ready(());
            };
            let replaced = mem::replace(stored, waker);
            drop(queue);
            drop(replaced);
            return Poll::Pending;
        }
        queue.last_key += 1;
        let key = (deadline, queue.last_key);
        queue.wakers.insert(key, waker);
        let is_first = queue.wakers.first_key_value().map(|(first, _)| *first) == Some(key);
        drop(queue);
        self.key = Some(key);
        if is_first {
            self.wake_worker.notify_one();
        }
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        let waker = self
            .key
            .and_then(|key| self.timers.queue().wakers.remove(&key));
        // Dropped without the lock, because it may run code of its executor.
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn a_dropped_timer_is_forgotten() {
        let (timers, wake_worker) = (Timers::default(), Notify::new());
        let mut sleep = Sleep::new(
            &timers,
            &wake_worker,
            Some(Instant::now() + Duration::from_secs(60)),
        );
        assert!(poll!(&mut sleep).is_pending());
        assert_eq!(timers.next_deadline(), sleep.deadline);
        drop(sleep);
        assert_eq!(timers.next_deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn timers_with_the_same_deadline_expire_at_that_time() {
        let (timers, wake_worker) = (Timers::default(), Notify::new());
        let sleep = || Sleep::new(&timers, &wake_worker, Some(Instant::now()));
        let mut sleeps = [sleep(), sleep()];
        for sleep in &mut sleeps {
            assert!(poll!(sleep).is_pending());
        }
        let mut wakers = Vec::new();
        timers.take_expired(&mut wakers);
        assert_eq!(wakers.len(), sleeps.len());
    }
}
