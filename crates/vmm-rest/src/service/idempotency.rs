use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::ApiError;
use crate::wire::{ErrorCode, ErrorModel};

pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// How long an answer is kept at the longest; [`LIFETIME_ISO`] in other words.
const LIFETIME: Duration = Duration::from_secs(60 * 60);
pub(crate) const LIFETIME_ISO: &str = "PT1H";

/// When there are more, the oldest are given up before their time.
const KEPT: usize = 16_384;

/// The answers to requests that had a key and succeeded, so that the same request gets the same
/// answer again, and nothing is done twice. In memory: a server that is started again knows none.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdempotencyKeys(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    requests: HashMap<String, Known>,
    /// The same keys, oldest first.
    by_age: VecDeque<(Instant, String)>,
}

#[derive(Clone, Debug)]
struct Known {
    fingerprint: u64,
    since: Instant,
    /// `None` until it has been answered.
    answer: watch::Receiver<Option<Answer>>,
}

/// A response in parts that can be sent again.
#[derive(Clone, Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    error: Option<ErrorModel>,
    body: Bytes,
}

/// What to do with a request.
enum Turn {
    First(watch::Sender<Option<Answer>>, Instant),
    Again(watch::Receiver<Option<Answer>>),
}

/// Answers a request that has a key once; the same one gets the same answer again.
pub(crate) async fn once(
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
            keys.answer(key, request, next).await
        }
        _ => ApiError::invalid("the header `Idempotency-Key` is no UUID").into_response(),
    }
}

impl IdempotencyKeys {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self, key: String, request: Request, next: Next) -> Response {
        let (parts, body) = request.into_parts();
        // It has been taken in already.
        let Ok(body) = to_bytes(body, usize::MAX).await else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        let fingerprint = fingerprint(&parts.method, parts.uri.path_and_query(), &body);
        let turn = self.kept().turn(&key, fingerprint);
        match turn {
            Err(refusal) => refusal.into_response(),
            Ok(Turn::First(sender, since)) => {
                // The server's, which waits for them when it is to end.
                let tasks: TaskTracker = parts.extensions.get().cloned().unwrap_or_default();
                let request = Request::from_parts(parts, Body::from(body));
                // In a task: a client that hangs up asks again, and must find what it has begun.
                let run = tasks.spawn(async move {
                    let (answer, response) = Answer::record(next.run(request).await).await;
                    // What was refused has not been done; another time it may be.
                    if !answer.status.is_success() {
                        self.kept().forget(&key, since);
                    }
                    sender.send_replace(Some(answer));
                    response
                });
                match run.await {
                    Ok(response) => response,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => super::answer::panicked(panic),
                        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                    },
                }
            }
            Ok(Turn::Again(mut receiver)) => match receiver.wait_for(Option::is_some).await {
                Ok(answer) => replayed(answer.as_ref()),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            },
        }
    }
}

fn replayed(answer: Option<&Answer>) -> Response {
    match answer {
        Some(answer) => {
            let mut response = answer.clone().into_response();
            let headers = response.headers_mut();
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
            response
        }
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Kept {
    fn turn(&mut self, key: &str, fingerprint: u64) -> Result<Turn, ApiError> {
        let now = Instant::now();
        self.give_up_old(now);
        // A sender that is gone without an answer has panicked: the request is a first one again.
        let known = self
            .requests
            .get(key)
            .filter(|known| known.answer.has_changed().is_ok() || known.answer.borrow().is_some());
        match known {
            Some(known) if known.fingerprint != fingerprint => Err(ApiError::new(
                ErrorCode::InvalidArgument,
                "this `Idempotency-Key` has been used for another request; use a new one",
            )
            .with_status(StatusCode::UNPROCESSABLE_ENTITY)),
            Some(known) => Ok(Turn::Again(known.answer.clone())),
            None => {
                if let Some(known) = self.requests.get(key) {
                    self.forget(key, known.since);
                }
                let (sender, answer) = watch::channel(None);
                let known = Known {
                    fingerprint,
                    since: now,
                    answer,
                };
                self.requests.insert(key.to_owned(), known);
                self.by_age.push_back((now, key.to_owned()));
                Ok(Turn::First(sender, now))
            }
        }
    }

    fn give_up_old(&mut self, now: Instant) {
        while let Some((since, key)) = self.by_age.front() {
            if self.by_age.len() < KEPT && now.duration_since(*since) < LIFETIME {
                return;
            }
            self.requests.remove(key);
            self.by_age.pop_front();
        }
    }

    /// Nothing, if it has been given up already: the key may be another request's by now.
    fn forget(&mut self, key: &str, since: Instant) {
        if self
            .requests
            .get(key)
            .is_none_or(|known| known.since != since)
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

impl Answer {
    async fn record(response: Response) -> (Self, Response) {
        let (parts, body) = response.into_parts();
        // Made by a handler, and in memory already.
        let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
        let answer = Self {
            status: parts.status,
            headers: parts.headers.clone(),
            error: parts.extensions.get().cloned(),
            body: body.clone(),
        };
        (answer, Response::from_parts(parts, Body::from(body)))
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.headers, self.body).into_response();
        if let Some(error) = self.error {
            response.extensions_mut().insert(error);
        }
        response
    }
}

/// Told apart by accident only; the one who could do it on purpose would fool himself.
fn fingerprint(method: &Method, target: impl Hash, body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (method.as_str(), target, body).hash(&mut hasher);
    hasher.finish()
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
    fn a_uuid_is_told_from_anything_else() {
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
    fn the_oldest_are_given_up_when_there_are_too_many() {
        let mut kept = Kept::default();
        let mut senders = Vec::new();
        for i in 0..=KEPT {
            match kept.turn(&format!("key-{i}"), 0) {
                Ok(Turn::First(sender, _)) => senders.push(sender),
                _ => panic!("{i} was not the first"),
            }
        }
        assert!(kept.requests.len() <= KEPT && kept.by_age.len() <= KEPT);
        assert!(matches!(kept.turn("key-0", 0), Ok(Turn::First(..))));
        assert!(matches!(
            kept.turn(&format!("key-{KEPT}"), 0),
            Ok(Turn::Again(_))
        ));
    }

    fn first(kept: &mut Kept, key: &str) -> (watch::Sender<Option<Answer>>, Instant) {
        match kept.turn(key, 0) {
            Ok(Turn::First(sender, since)) => (sender, since),
            _ => panic!("{key} was not the first"),
        }
    }

    #[test]
    fn what_is_refused_takes_no_room_from_what_was_done() {
        let mut kept = Kept::default();
        let _done = first(&mut kept, "done");
        for i in 0..=KEPT {
            let key = format!("refused-{i}");
            let (_, since) = first(&mut kept, &key);
            kept.forget(&key, since);
        }
        assert!(matches!(kept.turn("done", 0), Ok(Turn::Again(_))));
    }

    #[test]
    fn a_request_without_an_answer_takes_room_once() {
        let mut kept = Kept::default();
        for _ in 0..2 {
            // As when its handler panics.
            drop(first(&mut kept, "key"));
        }
        assert_eq!((kept.requests.len(), kept.by_age.len()), (1, 1));
    }

    #[test]
    fn a_refusal_that_comes_late_leaves_a_later_request_with_its_key() {
        let mut kept = Kept::default();
        let (_early, since) = first(&mut kept, "key");
        let _others: Vec<_> = (0..KEPT)
            .map(|i| first(&mut kept, &format!("other-{i}")))
            .collect();
        let _later = first(&mut kept, "key");
        kept.forget("key", since);
        assert!(matches!(kept.turn("key", 0), Ok(Turn::Again(_))));
    }
}
