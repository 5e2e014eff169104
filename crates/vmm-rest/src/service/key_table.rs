//! The requests with an idempotency key, by key and by age.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use tokio::sync::watch;

use super::ApiError;
use super::idempotency_journal::JournalEntry;
use super::recorded_response::RecordedResponse;
use crate::wire::ErrorCode;

/// How long a response is kept at most.
pub(super) const LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The most responses that are kept; the oldest are evicted first.
pub(super) const KEYS_MAX: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct KeyTable {
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

/// How to process a request with a key.
pub(super) enum Action {
    /// Execute the request, and send its response.
    Execute(watch::Sender<Option<RecordedResponse>>, Instant),
    /// Wait for the response of the earlier request.
    Replay(watch::Receiver<Option<RecordedResponse>>),
}

impl KeyTable {
    /// Decides how to process a request, and inserts it if it has to be executed.
    pub(super) fn action(&mut self, key: &str, fingerprint: u64) -> Result<Action, ApiError> {
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

    /// Inserts the responses of earlier servers. Returns how many are kept.
    pub(super) fn insert_recorded(&mut self, mut entries: Vec<JournalEntry>) -> usize {
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
        self.requests.len()
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
    pub(super) fn remove(&mut self, key: &str, since: Instant) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
