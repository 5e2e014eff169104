use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::topics::{TASK_EXEC_ADDED_EVENT_TOPIC, TASK_EXEC_STARTED_EVENT_TOPIC};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use vmm_protocol::{with_causes, write_file_unsynced};

use super::files::{event_numbers, event_path, read_event, write_event};
use super::timestamp;
use crate::error::ShimError;
use crate::log;

/// The number of events that are kept for a containerd that is away. The oldest are dropped, and counted.
const MAX_EVENTS: usize = 4096;

/// The file with the number of dropped events.
const DROPPED: &str = "dropped";

/// How long the queue waits before it reads the file of an event again, for example while no descriptor is free.
const READ_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The events that are dropped first: no client needs them to know what runs.
const MINOR_TOPICS: [&str; 2] = [TASK_EXEC_ADDED_EVENT_TOPIC, TASK_EXEC_STARTED_EVENT_TOPIC];

/// The events of a pod, in their order, until containerd has acknowledged them. Each is a file, whose name is its
/// number. One process at a time has the queue open. An event whose file cannot be written is kept in memory.
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
    pending: VecDeque<Pending>,
    dropped: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    number: u64,
    is_minor: bool,
    /// The event, if it is not in a file.
    unsaved: Option<Box<Envelope>>,
}

impl Pending {
    fn new(number: u64, envelope: Option<&Envelope>) -> Self {
        let topic = envelope.map(|envelope| envelope.topic.as_str());
        Self {
            number,
            is_minor: topic.is_some_and(|topic| MINOR_TOPICS.contains(&topic)),
            unsaved: None,
        }
    }
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

    /// Adds an event. Its file exists when this returns, and survives this process, unless the disk is full.
    pub(crate) fn publish<M: MessageFull>(&self, topic: &str, event: &M) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return log(format_args!("cannot encode the event {topic}: {error}")),
        };
        let mut envelope = Envelope::new();
        envelope.timestamp = Some(timestamp(jiff::Timestamp::now())).into();
        envelope.namespace.clone_from(&self.namespace);
        envelope.topic = topic.to_owned();
        envelope.event = Some(Any {
            type_url: M::descriptor().full_name().to_owned(),
            value,
            ..Any::default()
        })
        .into();
        self.with_state(|state| {
            self.save(state);
            let mut pending = Pending::new(state.next, Some(&envelope));
            if let Err(error) = write_event(&self.dir, pending.number, &envelope) {
                log(format_args!(
                    "cannot write the event {topic}, which is kept in memory: {}",
                    with_causes(&error)
                ));
                pending.unsaved = Some(Box::new(envelope));
            }
            state.pending.push_back(pending);
            state.next += 1;
            if state.pending.len() > self.max_events {
                self.drop_one(state);
            }
        });
        self.changed.notify_waiters();
    }

    /// Writes the events that are in memory only.
    pub(super) fn retry_save(&self) {
        self.with_state(|state| self.save(state));
    }

    fn save(&self, state: &mut QueueState) {
        for pending in &mut state.pending {
            if let Some(envelope) = &pending.unsaved
                && write_event(&self.dir, pending.number, envelope).is_ok()
            {
                pending.unsaved = None;
            }
        }
    }

    /// Drops the oldest event without which a client still knows what runs, or the oldest.
    fn drop_one(&self, state: &mut QueueState) {
        let minor = state.pending.iter().position(|pending| pending.is_minor);
        let Some(dropped) = state.pending.remove(minor.unwrap_or(0)) else {
            return;
        };
        state.dropped += 1;
        let _ = fs::remove_file(event_path(&self.dir, dropped.number));
        let _ = write_file_unsynced(
            &self.dir.join(DROPPED),
            state.dropped.to_string().as_bytes(),
        );
        log(format_args!(
            "containerd does not read its events: {} of the pod are dropped",
            state.dropped
        ));
    }

    /// Waits for an event, and returns the oldest with its number.
    ///
    /// # Cancel safety
    ///
    /// Removes only what is not an event.
    pub(super) async fn first(&self) -> (u64, Envelope) {
        let mut unreadable = None;
        loop {
            let changed = self.changed.notified();
            let Some(pending) = self.with_state(|state| state.pending.front().cloned()) else {
                changed.await;
                continue;
            };
            match self.read(&pending) {
                Ok(Some(envelope)) => return (pending.number, envelope),
                Ok(None) => {
                    log(format_args!("the event {} is damaged", pending.number));
                    self.remove(pending.number);
                }
                Err(error) => {
                    let number = pending.number;
                    if unreadable.replace(number) != Some(number) {
                        log(format_args!("cannot read the event {number}: {error}"));
                    }
                    sleep(READ_RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Removes an event that containerd has acknowledged, or publishes itself.
    pub(crate) fn remove(&self, number: u64) {
        self.with_state(|state| state.pending.retain(|pending| pending.number != number));
        let _ = fs::remove_file(event_path(&self.dir, number));
        self.changed.notify_waiters();
    }

    /// Returns the events that can be read, in their order, with their numbers.
    pub(crate) fn pending(&self) -> Vec<(u64, Envelope)> {
        let pending = self.with_state(|state| state.pending.clone());
        let read = |pending: &Pending| Some((pending.number, self.read(pending).ok()??));
        pending.iter().filter_map(read).collect()
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

    fn read(&self, pending: &Pending) -> io::Result<Option<Envelope>> {
        match &pending.unsaved {
            Some(envelope) => Ok(Some((**envelope).clone())),
            None => read_event(&self.dir, pending.number),
        }
    }
}

impl QueueState {
    fn read(dir: &Path) -> io::Result<Self> {
        let numbers = event_numbers(dir)?;
        let pending = numbers.iter().map(|number| {
            let envelope = read_event(dir, *number).ok().flatten();
            Pending::new(*number, envelope.as_ref())
        });
        let dropped = fs::read_to_string(dir.join(DROPPED)).ok();
        Ok(Self {
            next: numbers.last().map_or(0, |last| last + 1),
            pending: pending.collect(),
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
    fn exits_are_dropped_after_the_events_of_started_processes() {
        let dir = TempDir::new().unwrap();
        let queue = open(&dir, 4);
        publish(&queue, 0);
        queue.publish_exec_added("c", "e");
        queue.publish_start("c", "e", 1);
        drop(queue);
        let queue = open(&dir, 4);
        (1..4).for_each(|code| publish(&queue, code));
        assert_eq!(codes(&queue), [0, 1, 2, 3]);
        publish(&queue, 4);
        assert_eq!(codes(&queue), [1, 2, 3, 4]);
    }

    /// A directory with the name of the file lets the kernel refuse to replace or to read it.
    fn block(dir: &TempDir, number: u64) -> PathBuf {
        let path = event_path(dir.path(), number);
        fs::create_dir_all(path.join("x")).unwrap();
        path
    }

    #[test]
    fn an_event_that_cannot_be_written_is_kept_until_it_can_be() {
        let dir = TempDir::new().unwrap();
        let queue = open(&dir, 100);
        let blocked = block(&dir, 0);
        publish(&queue, 0);
        assert_eq!(codes(&queue), [0]);
        fs::remove_dir_all(blocked).unwrap();
        publish(&queue, 1);
        drop(queue);
        assert_eq!(codes(&open(&dir, 100)), [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_cannot_be_read_is_kept_and_a_damaged_one_is_not() {
        let dir = TempDir::new().unwrap();
        let queue = open(&dir, 100);
        (0..2).for_each(|code| publish(&queue, code));
        let (path, saved) = (event_path(dir.path(), 0), dir.path().join("saved"));
        fs::rename(&path, &saved).unwrap();
        let blocked = block(&dir, 0);
        let interval = READ_RETRY_INTERVAL * 3;
        assert!(timeout(interval, queue.first()).await.is_err());
        fs::remove_dir_all(&blocked).unwrap();
        fs::rename(saved, &path).unwrap();
        assert_eq!(queue.first().await.0, 0);
        fs::write(&path, "\u{7f}").unwrap();
        assert_eq!(queue.first().await.0, 1);
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
