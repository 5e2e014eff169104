//! What the fuzz target `procfs` in `tests/fuzz` checks of this crate. A function panics if a parser
//! breaks its promise for the input.

use crate::kernel::procfs::{parse, parse_fdinfo};
use crate::sys::parse_descriptor_table_size;

/// Checks the parsers of files in `/proc`.
pub fn procfs(input: &[u8]) {
    // A process with this name has these fields.
    let mut line = [b"42 (", input, b")"].concat();
    let fields = (4..=52).map(|number| number.to_string());
    let fields: Vec<_> = fields.collect();
    line.extend_from_slice(format!(" Z {}", fields.join(" ")).as_bytes());
    let stat = parse(&line).map(|stat| (stat.exited, stat.start_time));
    assert_eq!(stat, Some((true, 22)));

    assert!(parse_descriptor_table_size(input) >= 0);
    if let Ok(pid) = parse_fdinfo(&String::from_utf8_lossy(input)) {
        assert!(i32::try_from(pid).is_ok_and(|pid| pid > 0));
    }
}

/// Returns whether the process of a line in `/proc/<pid>/stat` has exited, and its start time.
pub fn stat(line: &[u8]) -> Option<(bool, u64)> {
    parse(line).map(|stat| (stat.exited, stat.start_time))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    #[test]
    #[cfg_attr(miri, ignore = "reads files")]
    fn the_parsers_keep_their_promises_for_the_corpus_of_the_fuzzer() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/procfs");
        if !corpus.is_dir() {
            // The published package does not contain the corpora.
            return;
        }
        for file in fs::read_dir(corpus).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            let input = fs::read(path).unwrap();
            super::procfs(&input);
            super::stat(&input);
        }
    }
}
