use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use rustix::fs::{FlockOperation, flock};
use tokio::sync::Notify;
use tokio::time::timeout;
use vmm_protocol::write_file_unsynced;

use super::timestamp;
use crate::error::ShimError;

/// The number of events that are kept for a containerd that is away. The oldest are dropped, and counted.
const MAX_EVENTS: usize = 4096;

/// The file with the number of dropped events.
const DROPPED: &str = "dropped";

/// The events of a pod, in their order, until containerd has acknowledged them. Each is a file, whose name is its
/// number. One process at a time has the queue open.
#[derive(Debug)]
pub(crate) struct EventQueue {
    dir: PathBuf,
    namespace: String,
    max_events: usize,
    state: Mutex<QueueState>,
    changed: Notify,
    _lock: File,
}

#[derive(Debug, Default)]
struct QueueState {
    next: u64,
    pending: VecDeque<u64>,
    dropped: u64,
}

impl EventQueue {
    /// Opens the queue in this directory, with the events that another process has left there. Its own events
    /// have this namespace of containerd.
    ///
    /// # Errors
    ///
    /// If the directory cannot be created or read; of the kind [`WouldBlock`](io::ErrorKind::WouldBlock) while
    /// another process has it open.
    pub(crate) fn open(dir: PathBuf, namespace: &str) -> Result<Self, ShimError> {
        Self::with_max(dir, namespace, MAX_EVENTS)
    }

    fn with_max(dir: PathBuf, namespace: &str, max_events: usize) -> Result<Self, ShimError> {
        let open = || -> io::Result<(File, QueueState)> {
            fs::create_dir_all(&dir)?;
            let lock = File::open(&dir)?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            let state = QueueState::read(&dir)?;
            Ok((lock, state))
        };
        let (lock, state) = open().map_err(ShimError::file("open", &dir))?;
        Ok(Self {
            dir,
            namespace: namespace.to_owned(),
            max_events,
            state: Mutex::new(state),
            changed: Notify::new(),
            _lock: lock,
        })
    }

    /// Adds an event. Its file exists when this returns, and survives this process.
    pub(crate) fn publish(&self, topic: &str, event: &impl MessageFull) {
        if let Err(error) = self.try_publish(topic, event) {
            let _ = writeln!(io::stderr(), "cannot keep the event {topic}: {error}");
        }
    }

    fn try_publish<M: MessageFull>(&self, topic: &str, event: &M) -> io::Result<()> {
        let mut envelope = Envelope::new();
        envelope.timestamp = Some(timestamp(jiff::Timestamp::now())).into();
        envelope.namespace.clone_from(&self.namespace);
        envelope.topic = topic.to_owned();
        envelope.event = Some(Any {
            type_url: M::descriptor().full_name().to_owned(),
            value: event.write_to_bytes()?,
            ..Any::default()
        })
        .into();
        let bytes = envelope.write_to_bytes()?;
        self.with_state(|state| {
            write_file_unsynced(&self.path(state.next), &bytes).map_err(io::Error::other)?;
            state.pending.push_back(state.next);
            state.next += 1;
            if state.pending.len() > self.max_events {
                self.drop_oldest(state);
            }
            io::Result::Ok(())
        })?;
        self.changed.notify_waiters();
        Ok(())
    }

    fn drop_oldest(&self, state: &mut QueueState) {
        let Some(oldest) = state.pending.pop_front() else {
            return;
        };
        state.dropped += 1;
        let _ = fs::remove_file(self.path(oldest));
        let _ = write_file_unsynced(
            &self.dir.join(DROPPED),
            state.dropped.to_string().as_bytes(),
        );
        let _ = writeln!(
            io::stderr(),
            "containerd does not read its events: {} of the pod are dropped",
            state.dropped
        );
    }

    /// Waits for an event, and returns the oldest with its number.
    pub(super) async fn first(&self) -> (u64, Envelope) {
        loop {
            let changed = self.changed.notified();
            match self.with_state(|state| state.pending.front().copied()) {
                None => changed.await,
                Some(number) => match self.read(number) {
                    Some(envelope) => return (number, envelope),
                    None => self.remove(number),
                },
            }
        }
    }

    /// Removes an event that containerd has acknowledged, or publishes itself.
    pub(crate) fn remove(&self, number: u64) {
        self.with_state(|state| state.pending.retain(|pending| *pending != number));
        let _ = fs::remove_file(self.path(number));
        self.changed.notify_waiters();
    }

    /// Returns the events, in their order, with their numbers.
    pub(crate) fn pending(&self) -> Vec<(u64, Envelope)> {
        let pending = self.with_state(|state| state.pending.clone());
        let read = |number| self.read(number).map(|envelope| (number, envelope));
        pending.into_iter().filter_map(read).collect()
    }

    /// Waits until containerd has acknowledged all events, for this time at most. Returns whether it has.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub(crate) async fn wait_empty(&self, limit: Duration) -> bool {
        let empty = async {
            loop {
                let changed = self.changed.notified();
                if self.with_state(|state| state.pending.is_empty()) {
                    return;
                }
                changed.await;
            }
        };
        timeout(limit, empty).await.is_ok()
    }

    fn with_state<T>(&self, action: impl FnOnce(&mut QueueState) -> T) -> T {
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self, number: u64) -> Option<Envelope> {
        let bytes = fs::read(self.path(number)).ok()?;
        Envelope::parse_from_bytes(&bytes).ok()
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}"))
    }
}

impl QueueState {
    fn read(dir: &Path) -> io::Result<Self> {
        let mut pending: Vec<u64> = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A temporary file is an event that was not published.
            let name = entry?.file_name();
            pending.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        pending.sort_unstable();
        let dropped = fs::read_to_string(dir.join(DROPPED)).ok();
        Ok(Self {
            next: pending.last().map_or(0, |last| last + 1),
            pending: pending.into(),
            dropped: dropped.and_then(|number| number.parse().ok()).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use containerd_shim_protos::events::task::TaskExit;
    use tempfile::TempDir;

    use super::*;
    use crate::events::decode;

    /// Opens a queue that this test has closed. A process that another test starts has the lock until it executes its
    /// program.
    fn open(dir: &TempDir, max_events: usize) -> EventQueue {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match EventQueue::with_max(dir.path().to_owned(), "default", max_events) {
                Err(ShimError::File { source, .. })
                    if source.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    std::thread::yield_now();
                }
                queue => return queue.unwrap(),
            }
        }
    }

    fn publish(queue: &EventQueue, code: u32) {
        let mut exit = TaskExit::new();
        exit.exit_status = code;
        queue.publish("/tasks/exit", &exit);
    }

    fn codes(queue: &EventQueue) -> Vec<u32> {
        let exits = queue.pending().into_iter();
        let exits = exits.filter_map(|(_, envelope)| decode::<TaskExit>(&envelope));
        exits.map(|exit| exit.exit_status).collect()
    }

    #[test]
    fn events_of_a_process_that_was_killed_are_kept_in_their_order() {
        let dir = TempDir::new().unwrap();
        let queue = open(&dir, 100);
        (0..12).for_each(|code| publish(&queue, code));
        let first = queue.pending()[0].0;
        queue.remove(first);
        drop(queue);
        fs::write(dir.path().join(".00000000000000000012.tmp"), "half").unwrap();
        let queue = open(&dir, 100);
        publish(&queue, 12);
        assert_eq!(codes(&queue), (1..13).collect::<Vec<_>>());
    }

    #[test]
    fn the_oldest_events_beyond_the_bound_are_dropped_and_counted() {
        let dir = TempDir::new().unwrap();
        let queue = open(&dir, 3);
        (0..5).for_each(|code| publish(&queue, code));
        assert_eq!(codes(&queue), [2, 3, 4]);
        drop(queue);
        let queue = open(&dir, 3);
        publish(&queue, 5);
        assert_eq!(codes(&queue), [3, 4, 5]);
        assert_eq!(queue.with_state(|state| state.dropped), 3);
    }

    #[test]
    fn one_process_at_a_time_has_the_queue_open() {
        let dir = TempDir::new().unwrap();
        let queue = open(&dir, 100);
        assert!(EventQueue::open(dir.path().to_owned(), "default").is_err());
        drop(queue);
        open(&dir, 100);
    }
}
