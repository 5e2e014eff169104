use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::ApiError;
use super::idempotency_journal::{Journal, JournalEntry, SharedJournal};
use crate::wire::{ErrorCode, ErrorModel};

pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// How long a response is kept at most; [`LIFETIME_ISO`] is the same duration.
const LIFETIME: Duration = Duration::from_secs(60 * 60);
pub(crate) const LIFETIME_ISO: &str = "PT1H";

/// The most responses that are kept; the oldest are evicted first.
pub(super) const KEYS_MAX: usize = 16_384;

/// The responses to successful requests with an idempotency key. A repeated request gets the recorded
/// response and is not executed again. The responses are lost on restart unless there is a journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdempotencyKeys {
    table: Arc<Mutex<KeyTable>>,
    /// Shared, because the routes have a clone when the journal is opened.
    journal: Arc<OnceLock<SharedJournal>>,
}

#[derive(Debug, Default)]
struct KeyTable {
    requests: HashMap<String, KeyedRequest>,
    /// The same keys, oldest first.
    by_age: VecDeque<(Instant, String)>,
}

#[derive(Clone, Debug)]
struct KeyedRequest {
    fingerprint: u64,
    since: Instant,
    /// `None` until the request has finished.
    response: watch::Receiver<Option<RecordedResponse>>,
}

/// A response that can be sent again.
#[derive(Clone, Debug)]
struct RecordedResponse {
    status: StatusCode,
    headers: HeaderMap,
    error: Option<ErrorModel>,
    body: Bytes,
}

/// How to process a request with a key.
enum Action {
    /// Execute the request, and send its response.
    Execute(watch::Sender<Option<RecordedResponse>>, Instant),
    /// Wait for the response of the earlier request.
    Replay(watch::Receiver<Option<RecordedResponse>>),
}

/// Executes a request with a key once; a repeated request gets the same response.
pub(crate) async fn execute_once(
    State(keys): State<IdempotencyKeys>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = request.headers().get(KEY) else {
        return next.run(request).await;
    };
    if !matches!(*request.method(), Method::POST | Method::DELETE) {
        return next.run(request).await;
    }
    match key.to_str() {
        Ok(key) if is_uuid(key) => {
            let key = key.to_ascii_lowercase();
            keys.execute_once(key, request, next).await
        }
        _ => ApiError::invalid("the header `Idempotency-Key` is not a UUID").into_response(),
    }
}

impl IdempotencyKeys {
    fn table(&self) -> MutexGuard<'_, KeyTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the responses of earlier servers from a file, and appends new ones to it.
    pub(crate) fn open_journal(&self, path: &Path) -> io::Result<()> {
        let (journal, entries) = Journal::open(path, LIFETIME)?;
        self.insert_recorded(entries);
        let opened = self.journal.set(SharedJournal::new(journal));
        opened.map_err(|_| io::Error::other("the server keeps its keys in another file already"))
    }

    /// Inserts the responses of earlier servers. Returns how many are kept.
    pub(super) fn insert_recorded(&self, entries: Vec<JournalEntry>) -> usize {
        let mut table = self.table();
        table.insert_recorded(entries);
        table.requests.len()
    }

    /// Appends the response to the journal, if there is one.
    async fn save(
        &self,
        key: String,
        fingerprint: u64,
        at: SystemTime,
        recorded: RecordedResponse,
    ) {
        let Some(journal) = self.journal.get() else {
            return;
        };
        let entry = recorded.into_entry(key, fingerprint, at);
        if let Err(error) = journal.append(entry).await {
            tracing::warn!(%error, "cannot save the response to a request with an idempotency key");
        }
    }

    async fn execute_once(self, key: String, request: Request, next: Next) -> Response {
        let (parts, body) = request.into_parts();
        // The body is buffered already, so its length is bounded.
        let Ok(body) = to_bytes(body, usize::MAX).await else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        let fingerprint = fingerprint(&parts.method, parts.uri.path_and_query(), &body);
        let action = self.table().action(&key, fingerprint);
        match action {
            Err(error) => error.into_response(),
            Ok(Action::Execute(sender, since)) => {
                // The server waits for these tasks when it shuts down.
                let tasks: TaskTracker = parts.extensions.get().cloned().unwrap_or_default();
                let request = Request::from_parts(parts, Body::from(body));
                let at = SystemTime::now();
                // In a task, so that a client that disconnects and retries finds its request.
                let run = tasks.spawn(async move {
                    let (recorded, response) =
                        RecordedResponse::record(next.run(request).await).await;
                    // A rejected request had no effect, so a retry may execute.
                    if recorded.status.is_success() {
                        self.save(key, fingerprint, at, recorded.clone()).await;
                    } else {
                        self.table().remove(&key, since);
                    }
                    sender.send_replace(Some(recorded));
                    response
                });
                match run.await {
                    Ok(response) => response,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => super::response::handle_panic(panic),
                        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                    },
                }
            }
            Ok(Action::Replay(mut receiver)) => match receiver.wait_for(Option::is_some).await {
                Ok(recorded) => replay(recorded.as_ref()),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            },
        }
    }
}

fn replay(recorded: Option<&RecordedResponse>) -> Response {
    match recorded {
        Some(recorded) => {
            let mut response = recorded.clone().into_response();
            let headers = response.headers_mut();
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
            response
        }
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl KeyTable {
    fn action(&mut self, key: &str, fingerprint: u64) -> Result<Action, ApiError> {
        let now = Instant::now();
        self.evict_old(now);
        // A sender that was dropped without a response has panicked: execute the request again.
        let earlier = self.requests.get(key).filter(|earlier| {
            earlier.response.has_changed().is_ok() || earlier.response.borrow().is_some()
        });
        match earlier {
            Some(earlier) if earlier.fingerprint != fingerprint => Err(ApiError::new(
                ErrorCode::InvalidArgument,
                "this `Idempotency-Key` was used for another request; use a new key",
            )
            .with_status(StatusCode::UNPROCESSABLE_ENTITY)),
            Some(earlier) => Ok(Action::Replay(earlier.response.clone())),
            None => {
                if let Some(earlier) = self.requests.get(key) {
                    self.remove(key, earlier.since);
                }
                let (sender, response) = watch::channel(None);
                let request = KeyedRequest {
                    fingerprint,
                    since: now,
                    response,
                };
                self.requests.insert(key.to_owned(), request);
                self.by_age.push_back((now, key.to_owned()));
                Ok(Action::Execute(sender, now))
            }
        }
    }

    fn insert_recorded(&mut self, mut entries: Vec<JournalEntry>) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        // The file has them in the order in which they ended.
        entries.sort_by_key(|entry| entry.at);
        for entry in entries {
            let age = clock.duration_since(entry.at).unwrap_or_default();
            let key = entry.key.clone();
            let fingerprint = entry.fingerprint;
            let Some((since, recorded)) = now
                .checked_sub(age)
                .zip(RecordedResponse::from_entry(entry))
            else {
                continue;
            };
            if let Some(earlier) = self.requests.get(&key) {
                self.remove(&key, earlier.since);
            }
            let (_, response) = watch::channel(Some(recorded));
            let request = KeyedRequest {
                fingerprint,
                since,
                response,
            };
            self.requests.insert(key.clone(), request);
            self.by_age.push_back((since, key));
        }
        self.evict_old(now);
    }

    fn evict_old(&mut self, now: Instant) {
        while let Some((since, key)) = self.by_age.front() {
            if self.by_age.len() < KEYS_MAX && now.duration_since(*since) < LIFETIME {
                return;
            }
            self.requests.remove(key);
            self.by_age.pop_front();
        }
    }

    /// Removes the request that has used the key since `since`. Does nothing if it was evicted: a later
    /// request may use the key by now.
    fn remove(&mut self, key: &str, since: Instant) {
        if self
            .requests
            .get(key)
            .is_none_or(|request| request.since != since)
        {
            return;
        }
        self.requests.remove(key);
        let older = self.by_age.partition_point(|(other, _)| *other < since);
        let mut rest = self.by_age.range(older..);
        if let Some(offset) = rest.position(|(_, other)| other == key) {
            self.by_age.remove(older + offset);
        }
    }
}

impl RecordedResponse {
    async fn record(response: Response) -> (Self, Response) {
        let (parts, body) = response.into_parts();
        // The handlers build their bodies in memory, so the read is bounded.
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        let recorded = Self {
            status: parts.status,
            headers: parts.headers.clone(),
            error: parts.extensions.get().cloned(),
            body: body.clone(),
        };
        (recorded, Response::from_parts(parts, Body::from(body)))
    }
}

impl RecordedResponse {
    fn into_entry(self, key: String, fingerprint: u64, at: SystemTime) -> JournalEntry {
        let headers = self.headers.iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?;
            Some((name.as_str().to_owned(), value.to_owned()))
        });
        JournalEntry {
            key,
            fingerprint,
            at,
            status: self.status.as_u16(),
            headers: headers.collect(),
            body: String::from_utf8_lossy(&self.body).into_owned(),
        }
    }

    fn from_entry(entry: JournalEntry) -> Option<Self> {
        let headers = entry.headers.iter().filter_map(|(name, value)| {
            let name: HeaderName = name.parse().ok()?;
            Some((name, value.parse().ok()?))
        });
        Some(Self {
            status: StatusCode::from_u16(entry.status).ok()?,
            headers: headers.collect(),
            error: None,
            body: entry.body.into(),
        })
    }
}

impl IntoResponse for RecordedResponse {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.headers, self.body).into_response();
        if let Some(error) = self.error {
            response.extensions_mut().insert(error);
        }
        response
    }
}

/// Hashes a request with FNV-1a, which is the same in every build. The hash is not collision
/// resistant: a client that forges a collision only deceives itself.
fn fingerprint(method: &Method, target: Option<&PathAndQuery>, body: &[u8]) -> u64 {
    let target = target.map_or("", PathAndQuery::as_str);
    let parts = [method.as_str().as_bytes(), target.as_bytes(), body];
    let bytes = parts.join(&b'\n');
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn is_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(i, byte)| match i {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_is_accepted() {
        assert!(is_uuid("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"));
        for text in [
            "",
            "017f22e279b07cc398c4dc0c0c07398f",
            "017f22e2-79b0-7cc3-98c4-dc0c0c07398g",
        ] {
            assert!(!is_uuid(text), "{text}");
        }
    }

    #[test]
    fn the_oldest_keys_are_evicted() {
        let mut table = KeyTable::default();
        let mut senders = Vec::new();
        for i in 0..=KEYS_MAX {
            match table.action(&format!("key-{i}"), 0) {
                Ok(Action::Execute(sender, _)) => senders.push(sender),
                _ => panic!("{i} is not executed"),
            }
        }
        assert!(table.requests.len() <= KEYS_MAX && table.by_age.len() <= KEYS_MAX);
        assert!(matches!(table.action("key-0", 0), Ok(Action::Execute(..))));
        assert!(matches!(
            table.action(&format!("key-{KEYS_MAX}"), 0),
            Ok(Action::Replay(_))
        ));
    }

    #[test]
    fn of_the_responses_in_a_file_those_to_the_oldest_requests_are_evicted() {
        let now = SystemTime::now();
        let entry = |key: String, age| JournalEntry {
            key,
            fingerprint: 0,
            at: now - Duration::from_secs(age),
            status: 204,
            headers: Vec::new(),
            body: String::new(),
        };
        let mut entries: Vec<_> = (0..KEYS_MAX).map(|i| entry(format!("{i}"), 9)).collect();
        // Requests that took long, one of them with a key that was used again.
        let reused = format!("{}", KEYS_MAX - 1);
        entries.extend([entry("old".to_owned(), 60), entry(reused.clone(), 50)]);
        let mut table = KeyTable::default();
        table.insert_recorded(entries);
        assert!(table.requests.len() <= KEYS_MAX && table.by_age.len() == table.requests.len());
        assert!(matches!(table.action(&reused, 0), Ok(Action::Replay(_))));
        assert!(matches!(table.action("old", 0), Ok(Action::Execute(..))));
    }

    fn execute(
        table: &mut KeyTable,
        key: &str,
    ) -> (watch::Sender<Option<RecordedResponse>>, Instant) {
        match table.action(key, 0) {
            Ok(Action::Execute(sender, since)) => (sender, since),
            _ => panic!("{key} is not executed"),
        }
    }

    #[test]
    fn rejected_requests_do_not_evict_successful_ones() {
        let mut table = KeyTable::default();
        let _done = execute(&mut table, "done");
        for i in 0..=KEYS_MAX {
            let key = format!("rejected-{i}");
            let (_, since) = execute(&mut table, &key);
            table.remove(&key, since);
        }
        assert!(matches!(table.action("done", 0), Ok(Action::Replay(_))));
    }

    #[test]
    fn a_request_that_panicked_is_kept_once() {
        let mut table = KeyTable::default();
        for _ in 0..2 {
            // As if its handler panicked.
            drop(execute(&mut table, "key"));
        }
        assert_eq!((table.requests.len(), table.by_age.len()), (1, 1));
    }

    #[test]
    fn a_late_rejection_does_not_remove_a_later_request_with_the_same_key() {
        let mut table = KeyTable::default();
        let (_early, since) = execute(&mut table, "key");
        let _others: Vec<_> = (0..KEYS_MAX)
            .map(|i| execute(&mut table, &format!("other-{i}")))
            .collect();
        let _later = execute(&mut table, "key");
        table.remove("key", since);
        assert!(matches!(table.action("key", 0), Ok(Action::Replay(_))));
    }
}
