use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use super::EngineError;
use crate::{FILES, FileError};

/// Where a payload says that it is ready, in the way of `sd_notify(3)`. Goes when it is dropped.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl NotifySocket {
    /// In `dir`, the directory of the box.
    pub(crate) fn bind(dir: &Path) -> Result<Self, EngineError> {
        let path = dir.join(FILES.notify);
        let failed = |source| FileError::new("bind the socket", &path, source);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error))?,
            _ => {}
        }
        let socket = UnixDatagram::bind(&path).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self { socket, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// True if one of the messages that have arrived says so.
    pub(crate) fn says_ready(&self) -> bool {
        let mut message = [0_u8; 4096];
        while let Ok(length) = self.socket.recv(&mut message) {
            let mut lines = message[..length].split(|byte| *byte == b'\n');
            if lines.any(|line| line == b"READY=1") {
                return true;
            }
        }
        false
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
