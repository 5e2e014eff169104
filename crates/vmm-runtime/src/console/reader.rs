use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use vmm_protocol::BoxDir;

use super::lines::{ends_with_newline, start_of_last};

/// Why the output of a box cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// The payload has replaced the file.
    #[error("cannot show the output of the box: its console.log is not a regular file")]
    NotAConsole,
    /// The file cannot be read.
    #[error("cannot read the output of the box")]
    Read(#[source] io::Error),
}

/// Reads the output of a box from its first byte, while the shim rotates the files.
///
/// A file with a higher number is older. The shim renames a file only after its last write to it,
/// and starts with the highest number.
///
/// All methods block on the disk.
#[derive(Debug)]
pub struct ConsoleReader {
    dir: BoxDir,
    /// The file that is being read; `None` until the first one exists.
    file: Option<File>,
    /// The bytes that were read or skipped.
    bytes_read: u64,
}

impl ConsoleReader {
    /// Creates a reader for the box in `dir`, which may have no output yet.
    pub fn new(dir: BoxDir) -> Self {
        Self {
            dir,
            file: None,
            bytes_read: 0,
        }
    }

    /// Skips all output before the last `lines` lines.
    pub fn skip_to_last_lines(&mut self, lines: u64) -> Result<(), ConsoleError> {
        let mut kept: Option<File> = None;
        let mut wanted = lines;
        for number in 0..u8::MAX {
            if kept.is_some() && wanted == 0 {
                break;
            }
            let mut file = match self.dir.open_console(number) {
                Ok(file) => file,
                Err(error) if number > 0 || error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(open_error(error)),
            };
            if let Some(newer) = &kept {
                if is_same(newer, &file).map_err(ConsoleError::Read)? {
                    // The shim has rotated the files in between.
                    continue;
                }
                // The first line of the newer file is the end of the last line of this one.
                if !ends_with_newline(&file).map_err(ConsoleError::Read)? {
                    wanted += 1;
                }
            }
            let (start, found) = start_of_last(&file, wanted).map_err(ConsoleError::Read)?;
            file.seek(SeekFrom::Start(start))
                .map_err(ConsoleError::Read)?;
            wanted -= found;
            kept = Some(file);
        }
        self.file = kept;
        Ok(())
    }

    /// Reads output into `buffer` and returns its length. Returns 0 if there is no new output.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ConsoleError> {
        let mut next = None;
        loop {
            if let Some(file) = &mut self.file {
                let length = read_some(file, buffer).map_err(ConsoleError::Read)?;
                if length > 0 {
                    self.bytes_read += length as u64;
                    return Ok(length);
                }
            }
            if next.is_some() {
                self.file = next.take();
                continue;
            }
            // Once a next file exists, the current one is complete, and is read to its end first.
            next = self.next_file()?;
            if next.is_none() {
                return Ok(0);
            }
        }
    }

    /// Returns how many bytes the shim has deleted before they were read. To be called when the box
    /// has ended.
    pub fn missing_bytes(&self) -> u64 {
        let kept = (0..u8::MAX)
            .filter_map(|number| self.metadata(number))
            .filter(Metadata::is_file)
            .fold(0_u64, |sum, file| sum.saturating_add(file.len()));
        let written = kept.saturating_add(self.dir.dropped_console_bytes());
        written.saturating_sub(self.bytes_read)
    }

    /// Opens the file after the current one, if it exists.
    fn next_file(&self) -> Result<Option<File>, ConsoleError> {
        loop {
            let Some(number) = self.next_number()? else {
                return Ok(None);
            };
            let file = match self.dir.open_console(number) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(open_error(error)),
            };
            // If the number has changed, the shim has rotated the files, and this may be another file.
            if self.next_number()? == Some(number) {
                return Ok(Some(file));
            }
        }
    }

    /// Returns the number of the file after the current one, or of the oldest file if the current
    /// one was deleted.
    fn next_number(&self) -> Result<Option<u8>, ConsoleError> {
        let current = match &self.file {
            Some(file) => {
                let file = file.metadata().map_err(ConsoleError::Read)?;
                let is_linked = file.nlink() > 0;
                let is_current = |number| {
                    self.metadata(number)
                        .is_some_and(|it| (it.dev(), it.ino()) == (file.dev(), file.ino()))
                };
                (0..u8::MAX).find(|number| is_linked && is_current(*number))
            }
            None => None,
        };
        // A payload may replace a file with something else. That is skipped, except for the first
        // file to be opened, which `open` rejects.
        let exists = |number| {
            self.metadata(number)
                .is_some_and(|it| it.is_file() || (number == 0 && self.file.is_none()))
        };
        // While the shim rotates the files, one of the first two exists, if any does.
        if current.is_none() && !exists(0) && !exists(1) {
            return Ok(None);
        }
        let newer = 0..current.unwrap_or(u8::MAX);
        Ok(newer.rev().find(|number| exists(*number)))
    }

    fn metadata(&self, number: u8) -> Option<Metadata> {
        #[cfg(test)]
        LOOKUPS.set(LOOKUPS.get() + 1);
        fs::symlink_metadata(self.dir.console_path(number)).ok()
    }
}

#[cfg(test)]
std::thread_local! {
    /// The number of console files that this thread has looked for.
    static LOOKUPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Converts the error of opening a console file that exists: a payload can put anything in its place.
fn open_error(error: io::Error) -> ConsoleError {
    // A symbolic link or a socket, open(2).
    let is_special = matches!(
        Errno::from_io_error(&error),
        Some(Errno::LOOP | Errno::NXIO)
    );
    if is_special || error.kind() == io::ErrorKind::InvalidData {
        ConsoleError::NotAConsole
    } else {
        ConsoleError::Read(error)
    }
}

fn read_some(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_new(reader: &mut ConsoleReader) -> String {
        let mut output = Vec::new();
        let mut chunk = [0; 7];
        loop {
            match reader.read(&mut chunk).unwrap() {
                0 => break,
                length => output.extend_from_slice(&chunk[..length]),
            }
        }
        String::from_utf8(output).unwrap()
    }

    /// Rotates the files as the shim does when it keeps three.
    fn rotate(reader: &ConsoleReader) {
        let oldest = reader.metadata(2).map_or(0, |file| file.len());
        let dropped = reader.dir.dropped_console_bytes() + oldest;
        reader.dir.write_dropped_console_bytes(dropped).unwrap();
        for number in [1, 0] {
            let _ = fs::rename(
                reader.dir.console_path(number),
                reader.dir.console_path(number + 1),
            );
        }
    }

    fn append(reader: &ConsoleReader, text: &str) {
        let mut options = File::options();
        let file = options
            .append(true)
            .create(true)
            .open(reader.dir.console_path(0));
        io::Write::write_all(&mut file.unwrap(), text.as_bytes()).unwrap();
    }

    #[test]
    fn files_are_read_once_and_in_order_for_any_number_of_rotations_between_reads() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(BoxDir::new(dir.path()));
        assert_eq!(read_new(&mut reader), "");
        let mut expected = String::new();
        for (read, rotations) in [2, 0, 1, 2, 0, 3, 1].into_iter().enumerate() {
            for rotation in 0..rotations {
                append(&reader, "end\n");
                rotate(&reader);
                append(&reader, &format!("{read} {rotation}\n"));
                expected += &format!("end\n{read} {rotation}\n");
            }
            append(&reader, "more\n");
            expected += "more\n";
            assert_eq!(read_new(&mut reader), expected, "{read}");
            expected.clear();
        }
        assert_eq!(reader.missing_bytes(), 0);
    }

    #[test]
    fn a_read_without_new_output_looks_for_few_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(BoxDir::new(dir.path()));
        let read_nothing = |reader: &mut ConsoleReader| {
            LOOKUPS.set(0);
            assert_eq!(read_new(reader), "");
            assert!(LOOKUPS.get() <= 3, "{}", LOOKUPS.get());
        };
        read_nothing(&mut reader);
        let writer = ConsoleReader::new(BoxDir::new(dir.path()));
        append(&writer, "first\n");
        assert_eq!(read_new(&mut reader), "first\n");
        read_nothing(&mut reader);
        // The payload deletes it.
        fs::remove_file(writer.dir.console_path(0)).unwrap();
        read_nothing(&mut reader);
    }

    #[test]
    fn missing_number_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(BoxDir::new(dir.path()));
        append(&reader, "first\n");
        assert_eq!(read_new(&mut reader), "first\n");
        // A shim that was killed between two renames leaves the files like this.
        fs::rename(reader.dir.console_path(0), reader.dir.console_path(2)).unwrap();
        append(&reader, "second\n");
        assert_eq!(read_new(&mut reader), "second\n");
    }

    #[test]
    fn output_deleted_before_a_read_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(BoxDir::new(dir.path()));
        append(&reader, "first\n");
        assert_eq!(read_new(&mut reader), "first\n");
        for number in 1..=5 {
            rotate(&reader);
            append(&reader, &format!("{number}\n"));
        }
        assert_eq!(read_new(&mut reader), "3\n4\n5\n");
        assert_eq!(reader.missing_bytes(), 4);
    }

    #[test]
    fn console_replaced_by_the_payload_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(BoxDir::new(dir.path()));
        append(&reader, "first\n");
        assert_eq!(read_new(&mut reader), "first\n");
        let mut file = File::options()
            .append(true)
            .open(reader.dir.console_path(0))
            .unwrap();
        fs::remove_file(reader.dir.console_path(0)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", reader.dir.console_path(0)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", reader.dir.console_path(1)).unwrap();
        io::Write::write_all(&mut file, b"second\n").unwrap();
        assert_eq!(read_new(&mut reader), "second\n");
    }

    #[test]
    fn the_last_lines_are_found_across_rotated_files() {
        let dir = tempfile::tempdir().unwrap();
        let last = |lines| {
            let mut reader = ConsoleReader::new(BoxDir::new(dir.path()));
            reader.skip_to_last_lines(lines).unwrap();
            read_new(&mut reader)
        };
        assert_eq!(last(3), "");
        let writer = ConsoleReader::new(BoxDir::new(dir.path()));
        append(&writer, "1\n2\n");
        rotate(&writer);
        append(&writer, "3\n4\n");
        rotate(&writer);
        append(&writer, "5\n");
        for (lines, expected) in [
            (0, ""),
            (1, "5\n"),
            (2, "4\n5\n"),
            (4, "2\n3\n4\n5\n"),
            (9, "1\n2\n3\n4\n5\n"),
        ] {
            assert_eq!(last(lines), expected, "{lines}");
        }
        append(&writer, "6, not complete");
        assert_eq!(last(2), "5\n6, not complete");
        // What is written later follows.
        let mut reader = ConsoleReader::new(BoxDir::new(dir.path()));
        reader.skip_to_last_lines(0).unwrap();
        rotate(&writer);
        append(&writer, "7\n");
        assert_eq!(read_new(&mut reader), "7\n");
        // A line that two files have a part of.
        append(&writer, "to be ");
        rotate(&writer);
        append(&writer, "continued\n");
        assert_eq!(last(2), "7\nto be continued\n");
        append(&writer, &format!("{}\n8\n", "x".repeat(40_000)));
        assert_eq!(last(2).len(), 40_003);
    }
}
