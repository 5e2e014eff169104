use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::BoxId;

/// The boxes for which something is due at a later time.
#[derive(Debug, Default)]
pub(crate) struct DueBoxes {
    queue: Mutex<Queue>,
    changed: Notify,
}

impl DueBoxes {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the box `id`, or changes when it is due. Of the boxes that are due, those with a lower
    /// `rank` come first.
    pub(crate) fn insert(&self, id: &BoxId, delay: Duration, rank: u32) {
        self.queue().insert(id, Instant::now() + delay, rank);
        self.changed.notify_one();
    }

    /// Waits for the next box that is due, and removes it from the queue.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future removes nothing.
    pub(crate) async fn next(&self) -> BoxId {
        loop {
            let next_due = {
                let mut queue = self.queue();
                if let Some(id) = queue.pop(Instant::now()) {
                    return id;
                }
                queue.next_due()
            };
            let timer = async {
                match next_due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

/// How long a box waits for those with a lower rank, for each rank, so that none waits for ever if
/// more become due than the runtime can handle.
const YIELD_PER_RANK: Duration = Duration::from_secs(60);

const MAX_RANK: u32 = 10;

#[derive(Debug, Default)]
struct Queue {
    entries: HashMap<BoxId, Entry>,
    waiting: BTreeSet<(Instant, BoxId)>,
    ready: BTreeSet<(Instant, BoxId)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    due: Instant,
    /// The order of the boxes that are due.
    turn: Instant,
}

impl Queue {
    fn insert(&mut self, id: &BoxId, due: Instant, rank: u32) {
        let turn = due + YIELD_PER_RANK * rank.min(MAX_RANK);
        if let Some(old) = self.entries.insert(id.clone(), Entry { due, turn }) {
            self.waiting.remove(&(old.due, id.clone()));
            self.ready.remove(&(old.turn, id.clone()));
        }
        self.waiting.insert((due, id.clone()));
    }

    fn pop(&mut self, now: Instant) -> Option<BoxId> {
        while let Some((due, _)) = self.waiting.first()
            && *due <= now
            && let Some((due, id)) = self.waiting.pop_first()
        {
            let turn = self.entries.get(&id).map_or(due, |entry| entry.turn);
            self.ready.insert((turn, id));
        }
        let (_, id) = self.ready.pop_first()?;
        self.entries.remove(&id);
        Some(id)
    }

    fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> BoxId {
        text.parse().unwrap()
    }

    #[test]
    fn boxes_that_are_due_come_in_the_order_of_rank_and_time() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut queue = Queue::default();
        for number in 0..1000 {
            queue.insert(&id(&format!("looping-{number}")), at(1), 7);
        }
        queue.insert(&id("second"), at(3), 1);
        queue.insert(&id("first"), at(2), 1);
        queue.insert(&id("later"), at(60), 0);
        assert_eq!(queue.pop(now), None);
        assert_eq!(queue.next_due(), Some(at(1)));
        let popped: Vec<_> = std::iter::from_fn(|| queue.pop(at(3))).collect();
        assert_eq!(
            (popped.len(), &*popped[0], &*popped[1]),
            (1002, "first", "second")
        );
        assert_eq!(queue.next_due(), Some(at(60)));
    }

    #[test]
    fn no_box_waits_for_ever_for_those_with_a_lower_rank() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.insert(&id("looping"), start, u32::MAX);
        // One box becomes due each second, and one box is taken.
        let taken = (0..10_000).find(|second| {
            let now = start + Duration::from_secs(*second);
            queue.insert(&id("crashing"), now, 1);
            queue.pop(now).as_deref() == Some("looping")
        });
        assert_eq!(taken, Some(9 * 60 + 1));
    }

    #[test]
    fn a_box_is_in_the_queue_once() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut queue = Queue::default();
        queue.insert(&id("a"), now, 1);
        queue.insert(&id("a"), later, 2);
        assert_eq!(queue.pop(now), None);
        assert_eq!(queue.pop(later).as_deref(), Some("a"));
        assert_eq!(queue.pop(later), None);
        // Also when it is ready already.
        queue.insert(&id("a"), now, 1);
        queue.insert(&id("b"), now, 0);
        assert_eq!(queue.pop(now).as_deref(), Some("b"));
        queue.insert(&id("a"), later, 1);
        assert_eq!(queue.pop(now), None);
        assert!(queue.pop(later).is_some() && queue.entries.is_empty());
    }
}
