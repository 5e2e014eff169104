//! What the fuzz targets in `tests/fuzz` check. A function panics if a parser breaks its promise for
//! the input.

#![allow(clippy::unwrap_used, reason = "a failed check ends the program")]

use std::ffi::OsStr;
use std::time::Duration;

use vmm_protocol::InstanceSpec;

use crate::RestartPolicy;
use crate::boxes::BoxRecord;
use crate::images::parse_image;

/// The longest error: it may quote a text.
const MAX_ERROR_BYTES: usize = 4 << 10;

/// Checks the parser of `box.json`, which a payload can write, and what the runtime derives from it.
pub fn box_json(input: &[u8]) {
    match BoxRecord::parse(input) {
        Ok(record) => {
            let json = serde_json::to_vec_pretty(&record).unwrap();
            let read = BoxRecord::parse(&json).unwrap();
            assert_eq!(serde_json::to_vec_pretty(&read).unwrap(), json);
            assert!(record.spec.check().is_ok());

            let instance = record.instance_spec();
            let line = instance.to_line().unwrap();
            assert_eq!(InstanceSpec::read(&*line), Ok((instance, None)));

            let policy = record.spec.restart;
            let restart = record.restart.after_opening(policy);
            let restart = restart.after_end(policy, true, Duration::ZERO);
            assert!(restart.delay() <= Duration::from_secs(60));
            assert!(record.health_after_exit().is_none() || record.spec.health.is_some());
        }
        Err(error) => assert!(error.to_string().len() <= MAX_ERROR_BYTES),
    }
}

/// Checks the parsers of image files and of restart policies.
pub fn config(input: &[u8]) {
    if let Ok((name, image)) = parse_image(OsStr::new("file"), input) {
        assert!(!name.is_empty() && !name.contains(char::is_control));
        assert!(image.payload(None, None).check().is_ok());
    }
    let policy: Result<RestartPolicy, _> = String::from_utf8_lossy(input).parse();
    if let Ok(policy) = policy {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
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
    fn the_corpus_has_whole_records() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/box_json");
        if !corpus.is_dir() {
            // The published package does not contain the corpora.
            return;
        }
        BoxRecord::parse(&fs::read(corpus.join("full")).unwrap()).unwrap();
        parse_image(OsStr::new("file"), &fs::read(corpus.join("image")).unwrap()).unwrap();
    }

    #[test]
    fn the_parsers_keep_their_promises_for_the_corpora_of_the_fuzzer() {
        replay("box_json", box_json);
        replay("box_json", config);
    }
}
