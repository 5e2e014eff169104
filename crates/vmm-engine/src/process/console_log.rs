use std::fs::{self, File};
use std::io::{self, Write};

use vmm_protocol::{BoxDir, ConsoleOptions, FileError};

/// The file `console.log` and its rotated files.
///
/// A payload must neither block nor fail because its output cannot be stored. The log therefore
/// drops output that it cannot write, and then writes a marker line with the number of dropped
/// bytes.
#[derive(Debug)]
pub(super) struct ConsoleLog {
    dir: BoxDir,
    options: ConsoleOptions,
    /// The current `console.log`; `None` if it could not be opened.
    file: Option<File>,
    len: u64,
    is_line_start: bool,
    /// The number of bytes dropped since the last marker.
    dropped: u64,
    /// The number of bytes that rotation has deleted, in this run and all previous ones.
    deleted: u64,
}

impl ConsoleLog {
    /// Opens the log in the box directory for appending.
    pub(super) fn open(dir: BoxDir, options: ConsoleOptions) -> Result<Self, FileError> {
        let deleted = dir.dropped_console_bytes();
        let mut log = Self {
            dir,
            options,
            file: None,
            len: 0,
            is_line_start: true,
            dropped: 0,
            deleted,
        };
        log.reopen()?;
        Ok(log)
    }

    /// Writes the output. Drops and counts the bytes that cannot be written.
    pub(super) fn write(&mut self, output: &[u8]) {
        let stored = if self.write_marker() {
            self.store(output)
        } else {
            0
        };
        self.dropped += (output.len() - stored) as u64;
    }

    /// Writes the marker for output that was dropped at the end.
    pub(super) fn finish(&mut self) {
        if !self.write_marker() {
            let dropped = self.dropped;
            let _ = writeln!(
                io::stderr(),
                "vmm-shim: cannot write console.log: {dropped} bytes dropped at its end"
            );
        }
    }

    /// Writes a marker if bytes were dropped. Returns false if it cannot be written.
    fn write_marker(&mut self) -> bool {
        if self.dropped == 0 {
            return true;
        }
        let newline = if self.is_line_start { "" } else { "\n" };
        let marker = format!("{newline}[vmm-shim: {} bytes dropped]\n", self.dropped);
        let is_complete = self.store(marker.as_bytes()) == marker.len();
        if is_complete {
            self.dropped = 0;
        }
        is_complete
    }

    /// Appends the output, and rotates the files as needed. Returns the number of bytes written.
    fn store(&mut self, output: &[u8]) -> usize {
        let mut stored = 0;
        while stored < output.len() {
            let rest = &output[stored..];
            let step = match self.fitting_length(rest) {
                0 => self.rotate().map(|()| 0),
                length => self.append(&rest[..length]),
            };
            match step {
                Ok(length) => stored += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        stored
    }

    /// Returns how many bytes of `output` fit in the current file. That is a number of complete
    /// lines, unless a line is longer than a file, or the file already contains its beginning.
    fn fitting_length(&self, output: &[u8]) -> usize {
        let free = self.options.max_bytes.saturating_sub(self.len);
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        if output.len() <= free {
            return output.len();
        }
        match output[..free].iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if self.is_line_start && self.len > 0 => 0,
            None => free,
        }
    }

    /// Appends some of the bytes, as [`Write::write`] does. Returns an error instead of 0.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_none() {
            self.reopen().map_err(|error| error.source)?;
        }
        let length = match &mut self.file {
            Some(file) => file.write(bytes)?,
            None => 0,
        };
        if length == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.len += length as u64;
        self.is_line_start = bytes[..length].ends_with(b"\n");
        Ok(length)
    }

    fn reopen(&mut self) -> Result<(), FileError> {
        let file = self.dir.open_console_for_append()?;
        self.len = file
            .metadata()
            .map_err(|source| FileError::new("read", self.dir.console_path(0), source))?
            .len();
        self.file = Some(file);
        Ok(())
    }

    /// Renames each file to the next number, which replaces the oldest file. At any time, a file
    /// with a higher number is older, and only `console.log` is written to.
    fn rotate(&mut self) -> io::Result<()> {
        let oldest = self.dir.console_path(self.options.files - 1);
        // The payload may have removed or replaced the file.
        let length = fs::symlink_metadata(&oldest).map_or(0, |oldest| oldest.len());
        self.count_deleted(length);
        for number in (0..self.options.files - 1).rev() {
            let _ = fs::rename(
                self.dir.console_path(number),
                self.dir.console_path(number + 1),
            );
        }
        self.file = None;
        match fs::remove_file(self.dir.console_path(0)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                self.len = 0;
                self.is_line_start = true;
                Ok(())
            }
        }
    }

    /// Updates `console.dropped`. The caller deletes the bytes afterwards, so that a reader never
    /// misses bytes that are not yet counted.
    fn count_deleted(&mut self, bytes: u64) {
        if bytes > 0 {
            // The payload can write any number to the file, so the sum could overflow.
            self.deleted = self.deleted.saturating_add(bytes);
            let _ = self.dir.write_dropped_console_bytes(self.deleted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const MAX: usize = 4096;

    fn log_in(dir: &Path) -> ConsoleLog {
        let options = ConsoleOptions::default().max_bytes(MAX as u64).files(2);
        ConsoleLog::open(BoxDir::new(dir), options).unwrap()
    }

    fn text(dir: &Path, number: u8) -> String {
        fs::read_to_string(BoxDir::new(dir).console_path(number)).unwrap()
    }

    #[test]
    fn rotation_happens_between_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(dir.path());
        let lines = "a line\n".repeat(MAX / 7) + "the next one\n";
        log.write(lines.as_bytes());
        assert_eq!(text(dir.path(), 1), "a line\n".repeat(MAX / 7));
        assert_eq!(text(dir.path(), 0), "the next one\n");
        let line = "x".repeat(MAX - 1) + "\n";
        log.write(line.as_bytes());
        assert_eq!(text(dir.path(), 0), line);
    }

    #[test]
    fn a_line_longer_than_a_file_is_split() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(dir.path());
        log.write("x".repeat(MAX).as_bytes());
        log.write(b"y\n");
        assert_eq!(text(dir.path(), 1), "x".repeat(MAX));
        assert_eq!(text(dir.path(), 0), "y\n");
    }

    #[test]
    fn a_marker_replaces_dropped_output() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        fs::create_dir(&dir).unwrap();
        let mut log = log_in(&dir);
        log.write(&[b'\n'; MAX]);
        fs::remove_dir_all(&dir).unwrap();
        log.write(b"lost\n");
        log.write(b"also lost\n");
        fs::create_dir(&dir).unwrap();
        log.write(b"found\n");
        log.finish();
        assert_eq!(text(&dir, 0), "[vmm-shim: 15 bytes dropped]\nfound\n");
    }

    #[test]
    fn finish_writes_a_marker_for_output_dropped_at_the_end() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("box");
        fs::create_dir(&dir).unwrap();
        let mut log = log_in(&dir);
        log.write(&[b'\n'; MAX]);
        fs::remove_dir_all(&dir).unwrap();
        log.write(b"lost\n");
        fs::create_dir(&dir).unwrap();
        log.finish();
        assert_eq!(text(&dir, 0), "[vmm-shim: 5 bytes dropped]\n");
    }

    #[test]
    fn a_forged_count_of_deleted_bytes_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("console.dropped");
        for forged in [u64::MAX.to_string(), "-1".to_owned(), "x".repeat(100)] {
            fs::write(&count, forged).unwrap();
            let mut log = log_in(dir.path());
            log.write(&[b'\n'; 4 * MAX]);
            let count = fs::read_to_string(&count).unwrap();
            assert!(count.trim().parse::<u64>().unwrap() > 0);
        }
    }

    #[test]
    fn deleted_bytes_are_counted_across_runs() {
        let dir = tempfile::tempdir().unwrap();
        for run in 1..=3 {
            let mut log = log_in(dir.path());
            log.write(&[b'\n'; 2 * MAX]);
            let files = fs::read_dir(dir.path()).unwrap().count();
            let dropped = fs::read_to_string(dir.path().join("console.dropped"));
            match run {
                1 => assert!(dropped.is_err() && files == 2),
                _ => assert_eq!(dropped.unwrap(), format!("{}\n", (run - 1) * 2 * MAX)),
            }
        }
    }
}
