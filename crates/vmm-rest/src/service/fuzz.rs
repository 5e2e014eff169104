//! What the fuzz targets in `tests/fuzz` check of the server. A function panics if a parser breaks its
//! promise for the input.

#![allow(clippy::unwrap_used, reason = "a failed check ends the program")]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use axum::extract::Query;
use axum::http::Uri;
use axum::response::IntoResponse;
use vmm_runtime::{Image, ImageTable};

use super::key_table::KEYS_MAX;
use super::{ApiError, IdempotencyKeys, box_spec, extract, idempotency_journal, routes};
use crate::BearerToken;
use crate::wire::{CreateBoxRequest, ErrorModel, ListBoxesQuery};

static IMAGES: LazyLock<ImageTable> = LazyLock::new(ImageTable::builtin);

/// The longest message of an error.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Checks the parsers of what a client sends.
pub fn requests(input: &[u8]) {
    match extract::json_object::<CreateBoxRequest>(input) {
        Ok(request) => {
            let json = serde_json::to_vec(&request).unwrap();
            let read = extract::json_object(&json);
            assert!(read.is_ok_and(|read: CreateBoxRequest| read == request));
            match box_spec(request, &IMAGES, true) {
                Ok(spec) => {
                    assert!(spec.payload.check().is_ok());
                    let cpus = spec.payload.cpus.unwrap();
                    assert!(Image::CPUS_RANGE.contains(&cpus));
                    let memory = spec.payload.memory_mib.unwrap();
                    assert!(Image::MEMORY_MIB_RANGE.contains(&memory));
                }
                Err(error) => assert_is_short(error),
            }
        }
        Err(error) => assert_is_short(error),
    }
    let stop = Uri::from_static("/v1/boxes/b/stop");
    let day = Duration::from_secs(24 * 60 * 60);
    assert!(routes::requested_wait(&stop, input) <= day);

    let text = String::from_utf8_lossy(input);
    if let Ok(uri) = format!("/v1/boxes?{text}").parse() {
        match Query::<ListBoxesQuery>::try_from_uri(&uri) {
            Ok(Query(query)) => {
                let length = |text: Option<String>| text.map_or(0, |text| text.len());
                // A byte that is not UTF-8 becomes a character of three.
                assert!(length(query.page_token) + length(query.status) <= 3 * text.len());
            }
            Err(error) => assert_is_short(error.into()),
        }
    }
    if let Ok(token) = BearerToken::new(&text) {
        assert!(token.matches(text.trim().as_bytes()));
    }
}

fn assert_is_short(error: ApiError) {
    let response = error.into_response();
    let model: &ErrorModel = response.extensions().get().unwrap();
    assert!(model.message.len() <= MAX_MESSAGE_BYTES);
}

/// Checks the parser of the file that keeps the responses to requests with an idempotency key.
pub fn idempotency_keys(input: &[u8]) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    let parse = |text| idempotency_journal::parse(text, now, Duration::MAX).unwrap();
    let entries = parse(input);
    let lines: Vec<_> = entries.iter().map(idempotency_journal::line).collect();
    let written: Vec<_> = lines.into_iter().map(Result::unwrap).collect();
    assert_eq!(parse(&written.concat()), entries);
    let count = entries.len();
    let kept = IdempotencyKeys::default().insert_recorded(entries);
    assert!(kept <= count.min(KEYS_MAX));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Calls `check` with each file of a corpus.
    fn replay(target: &str, check: impl Fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
        if !corpus.is_dir() {
            // The published package does not contain the corpora.
            return;
        }
        for file in fs::read_dir(corpus.join(target)).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            check(&fs::read(path).unwrap());
        }
    }

    #[test]
    fn the_parsers_keep_their_promises_for_the_corpora_of_the_fuzzer() {
        replay("requests", requests);
        replay("idempotency_keys", idempotency_keys);
    }
}
