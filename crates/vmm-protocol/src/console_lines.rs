use std::io::{Read, Seek, SeekFrom};

use crate::BoxDir;
use crate::bounds::MAX_TEXT_BYTES;

/// The last lines of a console, for a report of why a payload failed.
impl BoxDir {
    /// Returns the size of `console.log`; 0 if it does not exist.
    pub fn console_size(&self) -> u64 {
        self.open_console(0)
            .and_then(|console| console.metadata())
            .map_or(0, |metadata| metadata.len())
    }

    /// Reads the last lines of `console.log`, up to 4 KiB, that follow the first `start` bytes.
    /// Returns `None` if there are none, or if the file cannot be read. After a rotation, `start`
    /// does not count.
    pub fn last_console_lines(&self, start: u64) -> Option<String> {
        let mut console = self.open_console(0).ok()?;
        let size = console.metadata().ok()?.len();
        let start = if start <= size { start } else { 0 };
        let from = start.max(size.saturating_sub(MAX_TEXT_BYTES as u64));
        console.seek(SeekFrom::Start(from)).ok()?;
        let mut output = Vec::new();
        console.take(size - from).read_to_end(&mut output).ok()?;
        let mut output = &output[..];
        if from > start
            && let Some(newline) = output.iter().position(|byte| *byte == b'\n')
        {
            output = &output[newline + 1..];
        }
        let lines = String::from_utf8_lossy(output);
        let lines = lines.trim_end();
        // What is not UTF-8 has become longer.
        let from = lines.ceil_char_boundary(lines.len().saturating_sub(MAX_TEXT_BYTES));
        lines
            .get(from..)
            .filter(|lines| !lines.is_empty())
            .map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_console_lines_are_whole_and_of_this_run() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = BoxDir::new(temporary.path());
        assert_eq!((dir.console_size(), dir.last_console_lines(0)), (0, None));
        let mut console = dir.open_console_for_append().unwrap();
        writeln!(console, "of an earlier run").unwrap();
        let start = dir.console_size();
        assert_eq!(dir.last_console_lines(start), None);
        writeln!(console, "one\ntwo").unwrap();
        assert_eq!(dir.last_console_lines(start).unwrap(), "one\ntwo");
        // After a rotation the file is shorter.
        let all = "of an earlier run\none\ntwo";
        assert_eq!(dir.last_console_lines(1 << 20).unwrap(), all);
        writeln!(console, "{}\nlast", "x".repeat(4090)).unwrap();
        assert_eq!(dir.last_console_lines(start).unwrap(), "last");
        console.write_all(&[0xff; 4000]).unwrap();
        console.write_all(b"\nnewest").unwrap();
        let lines = dir.last_console_lines(start).unwrap();
        assert!(lines.ends_with("\nnewest") && lines.len() <= MAX_TEXT_BYTES);
    }
}
