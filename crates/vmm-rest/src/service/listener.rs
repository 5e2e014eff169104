use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{SocketFlags, accept_with};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::Connection;
use super::access::Access;
use super::socket_file::SocketFile;
use crate::BearerToken;

/// Where a server listens, and whom it lets in there.
///
/// A Unix socket lets in whoever can open it: it has mode 0600, so that is the user that the
/// server runs as, and root. TCP lets in whoever has the token.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    access: Access,
}

#[derive(Debug)]
enum Socket {
    Unix {
        listener: UnixListener,
        /// Removed with the listener.
        _file: Option<SocketFile>,
    },
    Tcp(TcpListener),
}

/// How much the kernel holds, in bytes, for a client that reads nothing; it would be megabytes.
const SEND_BUFFER: usize = 128 << 10;

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Everybody on the network could come in.
    #[error(
        "{address} can be reached from other hosts, and there is no token; give the server one, or \
         listen on a loopback address"
    )]
    NoToken {
        /// The address.
        address: SocketAddr,
    },
    /// Another server listens there.
    #[error("another server listens at {}; stop it, or choose another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is no socket; move it away, or choose another path", path.display())]
    NoSocket {
        /// What is there.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot listen at {at}: {source}")]
    System {
        /// A path or an address.
        at: String,
        /// What it says.
        source: io::Error,
    },
}

impl Listener {
    /// At a Unix socket of mode 0600, which is removed with the listener. One that a server which
    /// is gone has left is replaced.
    ///
    /// # Errors
    ///
    /// [`ListenError::InUse`], [`ListenError::NoSocket`], and [`ListenError::System`]: a path
    /// may be at most 107 bytes long.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves no socket behind.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with an I/O driver.
    pub async fn unix(path: &Path) -> Result<Self, ListenError> {
        let (listener, file) = SocketFile::bind(path).await?;
        Self::of_unix(listener, Some(file), path.display().to_string())
    }

    /// At a Unix socket that somebody else has bound, and removes: systemd, for one. Who gets in is
    /// for them to say, with the mode of the socket.
    ///
    /// # Errors
    ///
    /// [`ListenError::System`].
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with an I/O driver.
    pub fn from_unix(listener: std::os::unix::net::UnixListener) -> Result<Self, ListenError> {
        Self::of_unix(listener, None, "the inherited socket".to_owned())
    }

    fn of_unix(
        listener: std::os::unix::net::UnixListener,
        file: Option<SocketFile>,
        at: String,
    ) -> Result<Self, ListenError> {
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener))
            .map_err(|source| ListenError::System { at, source })?;
        Ok(Self {
            socket: Socket::Unix {
                listener,
                _file: file,
            },
            access: Access::Owner,
        })
    }

    /// At a TCP address. Without a token, on a loopback address, nothing is served there but
    /// `/v1/config` and `/healthz`.
    ///
    /// # Errors
    ///
    /// [`ListenError::NoToken`] if other hosts could reach it, and [`ListenError::System`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with an I/O driver.
    pub async fn tcp(address: SocketAddr, token: Option<BearerToken>) -> Result<Self, ListenError> {
        let failed = |source| ListenError::System {
            at: address.to_string(),
            source,
        };
        // Refused before anybody could connect.
        check(address, token.as_ref())?;
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self {
            socket: Socket::Tcp(listener),
            access: Access::Bearer(token),
        })
    }

    /// [`tcp`](Self::tcp) on a socket that somebody else has bound: systemd, for one.
    ///
    /// # Errors
    ///
    /// As for [`tcp`](Self::tcp).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with an I/O driver.
    pub fn from_tcp(
        listener: std::net::TcpListener,
        token: Option<BearerToken>,
    ) -> Result<Self, ListenError> {
        let failed = |source| ListenError::System {
            at: "the inherited socket".to_owned(),
            source,
        };
        check(listener.local_addr().map_err(failed)?, token.as_ref())?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            socket: Socket::Tcp(TcpListener::from_std(listener).map_err(failed)?),
            access: Access::Bearer(token),
        })
    }

    /// The TCP address; `None` for a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Unix { .. } => None,
            Socket::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) async fn accept(&self) -> io::Result<Connection> {
        match &self.socket {
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Connection::Unix(stream))
            }
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                of_tcp(stream)
            }
        }
    }

    /// Somebody who waits now; [`WouldBlock`](io::ErrorKind::WouldBlock) if nobody does.
    /// [`accept`](Self::accept) waits until tokio has been told of them.
    pub(crate) fn accept_arrived(&self) -> io::Result<Connection> {
        match &self.socket {
            Socket::Unix { listener, .. } => {
                let stream = UnixStream::from_std(arrived(listener)?.into())?;
                Ok(Connection::Unix(stream))
            }
            Socket::Tcp(listener) => of_tcp(TcpStream::from_std(arrived(listener)?.into())?),
        }
    }
}

fn arrived(listener: impl AsFd) -> io::Result<OwnedFd> {
    let stream = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    Ok(stream)
}

fn of_tcp(stream: TcpStream) -> io::Result<Connection> {
    // Answers are small, and whole when they are sent.
    stream.set_nodelay(true)?;
    set_socket_send_buffer_size(&stream, SEND_BUFFER)?;
    Ok(Connection::Tcp(stream))
}

fn check(address: SocketAddr, token: Option<&BearerToken>) -> Result<(), ListenError> {
    match address.ip().to_canonical().is_loopback() || token.is_some() {
        true => Ok(()),
        false => Err(ListenError::NoToken { address }),
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::socket_send_buffer_size;

    use super::*;

    #[tokio::test]
    async fn a_client_cannot_have_the_kernel_hold_more_than_a_little() {
        let listener = Listener::tcp(([127, 0, 0, 1], 0).into(), None)
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let Connection::Tcp(stream) = listener.accept().await.unwrap() else {
            panic!("it came by another way");
        };
        // The kernel doubles it, for what it needs itself, socket(7).
        assert_eq!(socket_send_buffer_size(&stream).unwrap(), 2 * SEND_BUFFER);
    }
}
