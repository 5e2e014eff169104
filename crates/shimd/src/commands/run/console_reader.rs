use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use vmm_shim::BoxDir;

use crate::failure::Failure;

/// Reads the output of a box from its first byte, while the shim rotates the files.
///
/// A file with a higher number is older. The shim renames a file only after its last write to it,
/// and starts with the highest number.
#[derive(Debug)]
pub(super) struct ConsoleReader {
    dir: BoxDir,
    /// The file that is being read; `None` until the first one exists.
    file: Option<File>,
    bytes_printed: u64,
}

impl ConsoleReader {
    /// Creates a reader for the box in `dir`, which may have no output yet.
    pub(super) fn new(dir: BoxDir) -> Self {
        Self {
            dir,
            file: None,
            bytes_printed: 0,
        }
    }

    /// Passes new output to `print`. Returns false if there is none.
    pub(super) fn print_new(
        &mut self,
        mut print: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let before = self.bytes_printed;
        loop {
            // Before the current file is read: once a next file exists, the current one is complete.
            let next = self.next_file()?;
            if let Some(file) = &mut self.file {
                self.bytes_printed += print_rest(file, &mut print)?;
            }
            if next.is_none() {
                return Ok(self.bytes_printed > before);
            }
            self.file = next;
        }
    }

    /// Fails if the shim deleted output before it was read. To be called when the box has ended.
    pub(super) fn check_complete(&self) -> Result<(), Failure> {
        let kept = (0..u8::MAX)
            .filter_map(|number| self.metadata(number))
            .filter(Metadata::is_file)
            .fold(0_u64, |sum, file| sum.saturating_add(file.len()));
        let written = kept.saturating_add(self.dir.dropped_console_bytes());
        match written.saturating_sub(self.bytes_printed) {
            0 => Ok(()),
            bytes => Err(Failure::OutputRotated { bytes }),
        }
    }

    /// Opens the file after the current one, if it exists.
    fn next_file(&self) -> Result<Option<File>, Failure> {
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
    fn next_number(&self) -> Result<Option<u8>, Failure> {
        let current = match &self.file {
            Some(file) => {
                let file = file.metadata().map_err(unreadable)?;
                let is_current = |number| {
                    self.metadata(number)
                        .is_some_and(|it| (it.dev(), it.ino()) == (file.dev(), file.ino()))
                };
                (0..u8::MAX).find(|number| is_current(*number))
            }
            None => None,
        };
        // A payload may replace a file with something else. That is skipped, except for the first
        // file to be opened, which `open` rejects.
        let exists = |number| {
            self.metadata(number)
                .is_some_and(|it| it.is_file() || (number == 0 && self.file.is_none()))
        };
        let newer = 0..current.unwrap_or(u8::MAX);
        Ok(newer.rev().find(|number| exists(*number)))
    }

    fn metadata(&self, number: u8) -> Option<Metadata> {
        fs::symlink_metadata(self.dir.console_path(number)).ok()
    }
}

/// Converts the error of opening a console file that exists: a payload can put anything in its place.
fn open_error(error: io::Error) -> Failure {
    // A symbolic link or a socket, open(2).
    let is_special = matches!(
        Errno::from_io_error(&error),
        Some(Errno::LOOP | Errno::NXIO)
    );
    if is_special || error.kind() == io::ErrorKind::InvalidData {
        Failure::NotAConsole
    } else {
        unreadable(error)
    }
}

/// Prints the rest of a file and returns its length in bytes.
fn print_rest(
    file: &mut File,
    print: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut chunk = [0; 1 << 14];
    let mut printed = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(printed),
            Ok(length) => {
                print(&chunk[..length])?;
                printed += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

fn unreadable(error: io::Error) -> Failure {
    Failure::system("read the output of the box")(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_new(reader: &mut ConsoleReader) -> String {
        let mut output = Vec::new();
        let print = |chunk: &[u8]| {
            output.extend_from_slice(chunk);
            Ok(())
        };
        reader.print_new(print).unwrap();
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
        reader.check_complete().unwrap();
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
        let failure = reader.check_complete();
        assert!(
            matches!(failure, Err(Failure::OutputRotated { bytes: 4 })),
            "{failure:?}"
        );
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
}
