use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use tokio_util::task::TaskTracker;

use super::ApiError;
use super::idempotency_journal::{Journal, JournalEntry, SharedJournal};
use super::key_table::{Action, KeyTable, LIFETIME};
use super::recorded_response::RecordedResponse;

pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// [`LIFETIME`] as the discovery document has it.
pub(crate) const LIFETIME_ISO: &str = "PT1H";

/// The responses to successful requests with an idempotency key. A repeated request gets the recorded
/// response and is not executed again. The responses are lost on restart unless there is a journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdempotencyKeys {
    table: Arc<Mutex<KeyTable>>,
    /// Shared, because the routes have a clone when the journal is opened.
    journal: Arc<OnceLock<SharedJournal>>,
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
        self.table().insert_recorded(entries)
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
}
