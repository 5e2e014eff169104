use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process;

use vmm_protocol::{BoxDir, FileError};

use crate::EngineError;

/// The socket to which a payload sends its readiness, as with `sd_notify(3)`. Dropping it deletes
/// the socket file.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
    address: PathBuf,
}

/// The size of `sun_path`, including the terminating NUL, `unix(7)`.
const MAX_ADDRESS_BYTES: usize = 108;

impl NotifySocket {
    /// Creates the socket in the box directory.
    pub(crate) fn bind(dir: &BoxDir) -> Result<Self, EngineError> {
        let path = dir.notify_socket_path();
        let bind_error = |source| FileError::new("bind the socket", &path, source);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(bind_error(error))?;
            }
            _ => {}
        }
        let address = address(&path);
        let socket = UnixDatagram::bind(&address).map_err(bind_error)?;
        socket.set_nonblocking(true).map_err(bind_error)?;
        Ok(Self {
            socket,
            path,
            address,
        })
    }

    /// Returns the value for `NOTIFY_SOCKET`.
    pub(crate) fn address(&self) -> &Path {
        &self.address
    }

    /// Receives all pending messages until one contains `READY=1`. Returns true if one does.
    pub(crate) fn receive_ready(&self) -> bool {
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

/// Returns the path itself, or a shorter address if the path is too long.
///
/// The box directory is the current directory of the shim, so `/proc/<pid>/cwd` refers to it
/// (`proc_pid_cwd(5)`). A payload of the same user can follow that link.
fn address(path: &Path) -> PathBuf {
    if path.as_os_str().len() < MAX_ADDRESS_BYTES {
        path.to_owned()
    } else {
        BoxDir::new(format!("/proc/{}/cwd", process::id())).notify_socket_path()
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
