use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process;

use vmm_protocol::{FILES, FileError};

use crate::EngineError;

/// Where a payload says that it is ready, in the way of `sd_notify(3)`. Goes when it is dropped.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
    address: PathBuf,
}

/// Of `sun_path`, its terminating NUL included, `unix(7)`.
const MAX_ADDRESS: usize = 108;

impl NotifySocket {
    /// In `dir`, the directory of the box.
    pub(crate) fn bind(dir: &Path) -> Result<Self, EngineError> {
        let path = dir.join(FILES.notify);
        let failed = |source| FileError::new("bind the socket", &path, source);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error))?,
            _ => {}
        }
        let address = address_of(&path);
        let socket = UnixDatagram::bind(&address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            socket,
            path,
            address,
        })
    }

    /// For `NOTIFY_SOCKET`.
    pub(crate) fn address(&self) -> &Path {
        &self.address
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

/// The path itself, unless it is too long for an address. A shim's current directory is that of its
/// box, so the kernel knows a short name for it, `proc_pid_cwd(5)`, which a payload of the same user
/// may follow.
fn address_of(path: &Path) -> PathBuf {
    if path.as_os_str().len() < MAX_ADDRESS {
        path.to_owned()
    } else {
        format!("/proc/{}/cwd/{}", process::id(), FILES.notify).into()
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
