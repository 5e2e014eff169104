use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::{self, context};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use vmm_protocol::write_file_unsynced;

use crate::error::ShimError;

/// The number of events that are kept for a containerd that is away. The oldest are dropped.
const MAX_EVENTS: usize = 4096;

/// How long containerd may take to acknowledge an event.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);

const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// The events of a pod, in their order, until containerd has acknowledged them. Each is a file.
#[derive(Debug)]
pub(crate) struct EventQueue {
    dir: PathBuf,
    namespace: String,
    state: Mutex<QueueState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    next: u64,
    pending: VecDeque<u64>,
}

impl EventQueue {
    pub(crate) fn create(dir: PathBuf, namespace: &str) -> Result<Self, ShimError> {
        fs::create_dir_all(&dir).map_err(ShimError::file("create", &dir))?;
        Ok(Self {
            dir,
            namespace: namespace.to_owned(),
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Adds an event. It is on the disk when this returns.
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        write_file_unsynced(&self.path(number), &bytes).map_err(io::Error::other)?;
        state.next += 1;
        state.pending.push_back(number);
        if state.pending.len() > MAX_EVENTS
            && let Some(oldest) = state.pending.pop_front()
        {
            let _ = writeln!(
                io::stderr(),
                "containerd is away: dropping the oldest event"
            );
            let _ = fs::remove_file(self.path(oldest));
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Sends the events to containerd at this address, in their order. Never returns.
    pub(crate) async fn forward(&self, address: &str) {
        let mut backoff = MIN_BACKOFF;
        let mut client = None;
        loop {
            let Some(number) = self.first().await else {
                continue;
            };
            match self.forward_one(address, &mut client, number).await {
                Ok(()) => {
                    self.remove(number);
                    backoff = MIN_BACKOFF;
                }
                Err(_) => {
                    client = None;
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    async fn forward_one(
        &self,
        address: &str,
        client: &mut Option<EventsClient>,
        number: u64,
    ) -> ttrpc::Result<()> {
        let Ok(bytes) = fs::read(self.path(number)) else {
            // It was dropped meanwhile.
            return Ok(());
        };
        let client = match client {
            Some(client) => client,
            None => {
                let address = format!("unix://{}", address.trim_start_matches("unix://"));
                client.insert(EventsClient::new(Client::connect(&address).await?))
            }
        };
        let mut request = ForwardRequest::new();
        let envelope = Envelope::parse_from_bytes(&bytes);
        request.envelope = envelope.ok().into();
        let context = context::with_duration(FORWARD_TIMEOUT);
        client.forward(context, &request).await.map(drop)
    }

    /// Waits for an event, and returns the oldest.
    async fn first(&self) -> Option<u64> {
        let changed = self.changed.notified();
        let first = self.with_state(|state| state.pending.front().copied());
        if first.is_none() {
            changed.await;
        }
        first
    }

    fn remove(&self, number: u64) {
        self.with_state(|state| state.pending.retain(|pending| *pending != number));
        let _ = fs::remove_file(self.path(number));
        self.changed.notify_waiters();
    }

    /// Waits until containerd has acknowledged all events, for this time at most.
    pub(crate) async fn wait_empty(&self, limit: Duration) {
        let empty = async {
            loop {
                let changed = self.changed.notified();
                if self.with_state(|state| state.pending.is_empty()) {
                    return;
                }
                changed.await;
            }
        };
        let _ = timeout(limit, empty).await;
    }

    fn with_state<T>(&self, action: impl FnOnce(&mut QueueState) -> T) -> T {
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}"))
    }
}

/// Converts a time to a message.
pub(crate) fn timestamp(time: jiff::Timestamp) -> Timestamp {
    let mut timestamp = Timestamp::new();
    timestamp.seconds = time.as_second();
    timestamp.nanos = time.subsec_nanosecond();
    timestamp
}
