//! What the fuzz targets in `tests/fuzz` check of the client. A function panics if a parser breaks its
//! promise for the input.

#![allow(clippy::unwrap_used, reason = "a failed check ends the program")]

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::sse::{SseEvent, SseParser};
use crate::wire::{
    BoxEvent, BoxMetricsResponse, BoxResponse, ErrorResponse, EventsLost, ListBoxesResponse,
    Principal, Readiness, RuntimeMetricsResponse, ServerConfig,
};

/// Checks the parsers of what a server sends.
pub fn responses(input: &[u8]) {
    let events = SseParser::default().push(input);
    let bytes = events
        .iter()
        .map(|event| event.name.len() + event.data.len());
    // A byte that is not UTF-8 becomes a character of three.
    assert!(bytes.sum::<usize>() <= 3 * input.len());
    let size = usize::from(input.first().copied().unwrap_or_default()) % 16 + 1;
    let mut parser = SseParser::default();
    let in_chunks: Vec<_> = input
        .chunks(size)
        .flat_map(|chunk| parser.push(chunk))
        .collect();
    assert_eq!(in_chunks, events);

    // What the server writes for data without line breaks.
    let text = String::from_utf8_lossy(input);
    let line = text.replace(['\r', '\n'], "");
    if !line.is_empty() {
        let written = format!(":\n\nevent: x\ndata: {line}\n\n");
        let event = SseEvent {
            name: "x".to_owned(),
            data: line,
        };
        assert_eq!(SseParser::default().push(written.as_bytes()), [event]);
    }

    assert_same_after_json::<BoxEvent>(&text);
    assert_same_after_json::<EventsLost>(&text);
    assert_same_after_json::<BoxResponse>(&text);
    assert_same_after_json::<ListBoxesResponse>(&text);
    assert_same_after_json::<ErrorResponse>(&text);
    assert_same_after_json::<BoxMetricsResponse>(&text);
    assert_same_after_json::<RuntimeMetricsResponse>(&text);
    assert_same_after_json::<Principal>(&text);
    assert_same_after_json::<Readiness>(&text);
    assert_same_after_json::<ServerConfig>(&text);
}

/// Checks that a value is parsed as it is written.
fn assert_same_after_json<T: Serialize + DeserializeOwned>(text: &str) {
    if let Ok(value) = serde_json::from_str::<T>(text) {
        let json = serde_json::to_string(&value).unwrap();
        let read: T = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_parsers_keep_their_promises_for_the_corpora_of_the_fuzzer() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
        if !corpus.is_dir() {
            // The published package does not contain the corpora.
            return;
        }
        for file in fs::read_dir(corpus.join("responses")).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            responses(&fs::read(path).unwrap());
        }
    }
}
