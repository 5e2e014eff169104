use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use vmm_shim::{FILES, read_file};

use crate::failure::Failure;

/// Reads what a box prints, from its first byte on, while the shim rotates the files.
///
/// A higher number is an older file. The shim renames a file only when it writes no more to it, and
/// the highest number first.
#[derive(Debug)]
pub(super) struct ConsoleReader {
    /// The box's directory.
    dir: PathBuf,
    /// `None` until there is one.
    file: Option<File>,
    shown: u64,
}

/// More than a count of bytes takes.
const MAX_COUNT_BYTES: u64 = 32;

impl ConsoleReader {
    /// The files may not be there yet.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            file: None,
            shown: 0,
        }
    }

    /// Hands what is new to `print`. False if nothing is.
    pub(super) fn show(
        &mut self,
        mut print: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let before = self.shown;
        loop {
            // Looked for first: once there is a next file, this one does not grow any more.
            let next = self.next_file()?;
            if let Some(file) = &mut self.file {
                self.shown += print_rest(file, &mut print)?;
            }
            if next.is_none() {
                return Ok(self.shown > before);
            }
            self.file = next;
        }
    }

    /// Fails if output was deleted before it could be shown. To be called when the box has ended.
    pub(super) fn check_complete(&self) -> Result<(), Failure> {
        let dropped = read_file(&self.dir.join(FILES.console_dropped), MAX_COUNT_BYTES)
            .ok()
            .and_then(|text| String::from_utf8(text).ok()?.trim().parse::<u64>().ok());
        let kept = (0..u8::MAX)
            .filter_map(|number| self.metadata(number))
            .filter(Metadata::is_file)
            .fold(0_u64, |sum, file| sum.saturating_add(file.len()));
        let printed = kept.saturating_add(dropped.unwrap_or(0));
        match printed.saturating_sub(self.shown) {
            0 => Ok(()),
            bytes => Err(Failure::OutputRotated { bytes }),
        }
    }

    fn next_file(&self) -> Result<Option<File>, Failure> {
        loop {
            let Some(number) = self.next_number()? else {
                return Ok(None);
            };
            let opened = open(self.path(number))?;
            // Otherwise the files were rotated meanwhile, and it may be another one.
            if opened.is_some() && self.next_number()? == Some(number) {
                return Ok(opened);
            }
        }
    }

    /// The number of the file after the current one: the oldest, if the current one was deleted.
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
        // What a payload has put in their place is skipped, or refused if there is nothing else.
        let is_there = |number| {
            self.metadata(number)
                .is_some_and(|it| it.is_file() || (number == 0 && self.file.is_none()))
        };
        let newer = 0..current.unwrap_or(u8::MAX);
        Ok(newer.rev().find(|number| is_there(*number)))
    }

    fn metadata(&self, number: u8) -> Option<Metadata> {
        fs::symlink_metadata(self.path(number)).ok()
    }

    fn path(&self, number: u8) -> PathBuf {
        self.dir.join(FILES.rotated_console(number))
    }
}

/// Neither waits nor goes elsewhere, whatever the payload has put in its place.
fn open(path: PathBuf) -> Result<Option<File>, Failure> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        // A link, or a socket, open(2).
        Err(Errno::LOOP | Errno::NXIO) => return Err(Failure::NoConsole),
        Err(error) => return Err(unreadable(error.into())),
    };
    match file.metadata().map_err(unreadable)?.is_file() {
        true => Ok(Some(file)),
        false => Err(Failure::NoConsole),
    }
}

/// Returns how many bytes were left.
fn print_rest(
    file: &mut File,
    print: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut piece = [0; 1 << 14];
    let mut printed = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(printed),
            Ok(length) => {
                print(&piece[..length])?;
                printed += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

fn unreadable(error: io::Error) -> Failure {
    Failure::system("read what the box prints")(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(reader: &mut ConsoleReader) -> String {
        let mut shown = Vec::new();
        let print = |piece: &[u8]| {
            shown.extend_from_slice(piece);
            Ok(())
        };
        reader.show(print).unwrap();
        String::from_utf8(shown).unwrap()
    }

    /// As the shim does, with three files.
    fn rotate(reader: &ConsoleReader) {
        let oldest = reader.metadata(2).map_or(0, |file| file.len());
        let count = reader.dir.join(FILES.console_dropped);
        let dropped = fs::read_to_string(&count).map_or(0, |text| text.parse().unwrap());
        fs::write(count, (dropped + oldest).to_string()).unwrap();
        for number in [1, 0] {
            let _ = fs::rename(reader.path(number), reader.path(number + 1));
        }
    }

    fn print(reader: &ConsoleReader, text: &str) {
        let mut options = File::options();
        let file = options.append(true).create(true).open(reader.path(0));
        io::Write::write_all(&mut file.unwrap(), text.as_bytes()).unwrap();
    }

    #[test]
    fn files_are_read_once_and_in_order_however_often_they_are_rotated_between_two_looks() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(dir.path().to_owned());
        assert_eq!(shown(&mut reader), "");
        let mut printed = String::new();
        for (look, rotations) in [2, 0, 1, 2, 0, 3, 1].into_iter().enumerate() {
            for rotation in 0..rotations {
                print(&reader, "end\n");
                rotate(&reader);
                print(&reader, &format!("{look} {rotation}\n"));
                printed += &format!("end\n{look} {rotation}\n");
            }
            print(&reader, "more\n");
            printed += "more\n";
            assert_eq!(shown(&mut reader), printed, "{look}");
            printed.clear();
        }
        reader.check_complete().unwrap();
    }

    #[test]
    fn a_missing_number_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(dir.path().to_owned());
        print(&reader, "first\n");
        assert_eq!(shown(&mut reader), "first\n");
        // As a shim leaves them that was killed in between.
        fs::rename(reader.path(0), reader.path(2)).unwrap();
        print(&reader, "second\n");
        assert_eq!(shown(&mut reader), "second\n");
    }

    #[test]
    fn output_that_was_deleted_before_a_look_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(dir.path().to_owned());
        print(&reader, "first\n");
        assert_eq!(shown(&mut reader), "first\n");
        for number in 1..=5 {
            rotate(&reader);
            print(&reader, &format!("{number}\n"));
        }
        assert_eq!(shown(&mut reader), "3\n4\n5\n");
        let failure = reader.check_complete();
        assert!(
            matches!(failure, Err(Failure::OutputRotated { bytes: 4 })),
            "{failure:?}"
        );
    }

    #[test]
    fn a_log_that_the_payload_has_replaced_is_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = ConsoleReader::new(dir.path().to_owned());
        print(&reader, "first\n");
        assert_eq!(shown(&mut reader), "first\n");
        let mut file = File::options().append(true).open(reader.path(0)).unwrap();
        fs::remove_file(reader.path(0)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", reader.path(0)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", reader.path(1)).unwrap();
        io::Write::write_all(&mut file, b"second\n").unwrap();
        assert_eq!(shown(&mut reader), "second\n");
    }
}
