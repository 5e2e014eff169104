use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use vmm_protocol::FILES;

/// The socket over which clients connect to the shim.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: UnixListener,
}

impl ControlSocket {
    /// Creates the socket. The current directory must be the box directory, whose path may be longer
    /// than that of a socket may be.
    pub(crate) fn bind() -> io::Result<Self> {
        match fs::remove_file(FILES.control) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(FILES.control)?;
        // No client can connect before this, because the directory is private.
        fs::set_permissions(FILES.control, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Accepts a client of the same user, or of root. Returns `None` if there is none.
    pub(super) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let peer = getsockopt(&stream, PeerCredentials)?;
                    if peer.uid() == 0 || peer.uid() == geteuid().as_raw() {
                        return Ok(Some(stream.into()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
