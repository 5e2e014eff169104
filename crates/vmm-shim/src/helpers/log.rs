use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::ioctl_fionbio;
use vmm_protocol::{BoxDir, FileError};

/// The maximum size of `helpers.log`.
const MAX_BYTES: u64 = 64 << 10;

/// Copies the output of helpers from a pipe to `helpers.log`. Keeps the last output: a file that would
/// become too large begins again.
#[derive(Debug)]
pub(super) struct HelperLog {
    output: PipeReader,
    file: File,
    len: u64,
}

impl HelperLog {
    /// Opens the log of the box, and the pipe. The write end is for the helpers only.
    pub(super) fn open(dir: &BoxDir) -> Result<(Self, PipeWriter), FileError> {
        let file = dir.open_helpers_log()?;
        let pipe = || {
            let (output, helpers_end) = io::pipe()?;
            // A helper could read from the pipe between `poll` and `read`.
            ioctl_fionbio(&output, true)?;
            Ok((output, helpers_end))
        };
        let (output, helpers_end) =
            pipe().map_err(|error| FileError::new("open a pipe for", dir.path(), error))?;
        let log = Self {
            output,
            file,
            len: 0,
        };
        Ok((log, helpers_end))
    }

    /// Copies what is in the pipe. Returns false once no helper holds the pipe.
    pub(super) fn copy(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.output.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.write(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    fn write(&mut self, output: &[u8]) {
        let count = output.len() as u64;
        if self.len + count > MAX_BYTES && self.file.set_len(0).is_ok() {
            self.len = 0;
        }
        // On a full disk, output is lost, and the helpers go on.
        if self.len + count <= MAX_BYTES && self.file.write_all(output).is_ok() {
            self.len += count;
        }
    }
}

impl AsFd for HelperLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_log_keeps_the_last_output_and_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let box_dir = BoxDir::new(dir.path());
        let (mut log, mut helper) = HelperLog::open(&box_dir).unwrap();
        for number in 0..10_000 {
            writeln!(helper, "line {number}").unwrap();
            assert!(log.copy());
        }
        drop(helper);
        assert!(!log.copy());
        let text = fs::read_to_string(dir.path().join("helpers.log")).unwrap();
        assert!(text.ends_with("line 9999\n"));
        assert!(text.len() as u64 <= MAX_BYTES);
    }
}
