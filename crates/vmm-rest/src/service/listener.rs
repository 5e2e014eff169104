use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{SocketFlags, accept_with};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::access::Access;
use super::socket_file::SocketFile;
use super::{Connection, ListenError};
use crate::BearerToken;

/// A socket that a server listens on, and how clients authenticate there.
///
/// A Unix socket accepts every client that can open it. It has mode 0600, so these are the user that
/// the server runs as, and root. Over TCP, clients need the token.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    access: Access,
}

#[derive(Debug)]
enum Socket {
    Unix {
        listener: UnixListener,
        /// Removes the socket file on drop.
        _file: Option<SocketFile>,
    },
    Tcp(TcpListener),
}

/// The bytes that the kernel buffers for a TCP client that reads nothing; megabytes by default.
const SEND_BUFFER_BYTES: usize = 128 << 10;

impl Listener {
    /// Listens on a Unix socket of mode 0600. Dropping the listener removes the socket. A socket file
    /// that a previous server has left is replaced.
    ///
    /// # Errors
    ///
    /// [`ListenError::InUse`] if another server listens on the socket, [`ListenError::NoSocket`] if the
    /// path is not a socket, and [`ListenError::System`], for example if the path is longer than 107
    /// bytes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future removes the socket.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with an I/O driver.
    pub async fn unix(path: &Path) -> Result<Self, ListenError> {
        let (listener, file) = SocketFile::bind(path).await?;
        Self::from_unix_at(listener, Some(file), path.display().to_string())
    }

    /// Listens on a Unix socket that another process has bound and will remove, such as systemd. The
    /// mode of the socket determines which clients can connect.
    ///
    /// # Errors
    ///
    /// [`ListenError::System`] if the socket cannot be used.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with an I/O driver.
    pub fn from_unix(listener: std::os::unix::net::UnixListener) -> Result<Self, ListenError> {
        Self::from_unix_at(listener, None, "the inherited socket".to_owned())
    }

    fn from_unix_at(
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

    /// Listens on a TCP address. Without a token the address must be a loopback address, and the server
    /// serves only `/v1/config` and `/healthz` there.
    ///
    /// # Errors
    ///
    /// [`ListenError::NoToken`] if other hosts can reach the address and there is no token, and
    /// [`ListenError::System`] if the address cannot be bound.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with an I/O driver.
    pub async fn tcp(address: SocketAddr, token: Option<BearerToken>) -> Result<Self, ListenError> {
        let failed = |source| ListenError::System {
            at: address.to_string(),
            source,
        };
        // Checked first, so that no client can connect.
        require_token(address, token.as_ref())?;
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Self {
            socket: Socket::Tcp(listener),
            access: Access::Bearer(token),
        })
    }

    /// Listens on a TCP socket that another process has bound, such as systemd. Tokens are required as
    /// for [`tcp`](Self::tcp).
    ///
    /// # Errors
    ///
    /// The errors of [`tcp`](Self::tcp).
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with an I/O driver.
    pub fn from_tcp(
        listener: std::net::TcpListener,
        token: Option<BearerToken>,
    ) -> Result<Self, ListenError> {
        let failed = |source| ListenError::System {
            at: "the inherited socket".to_owned(),
            source,
        };
        require_token(listener.local_addr().map_err(failed)?, token.as_ref())?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            socket: Socket::Tcp(TcpListener::from_std(listener).map_err(failed)?),
            access: Access::Bearer(token),
        })
    }

    /// Returns the TCP address that the listener is bound to; `None` for a Unix socket.
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
                configured_tcp(stream)
            }
        }
    }

    /// Accepts a connection from the backlog; fails with [`WouldBlock`](io::ErrorKind::WouldBlock) if
    /// the backlog is empty. Unlike [`accept`](Self::accept), does not depend on tokio's readiness.
    pub(crate) fn try_accept(&self) -> io::Result<Connection> {
        match &self.socket {
            Socket::Unix { listener, .. } => {
                let stream = UnixStream::from_std(accept_now(listener)?.into())?;
                Ok(Connection::Unix(stream))
            }
            Socket::Tcp(listener) => {
                configured_tcp(TcpStream::from_std(accept_now(listener)?.into())?)
            }
        }
    }
}

fn accept_now(listener: impl AsFd) -> io::Result<OwnedFd> {
    let stream = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    Ok(stream)
}

fn configured_tcp(stream: TcpStream) -> io::Result<Connection> {
    // Responses are small and sent as a whole, so that Nagle's algorithm would only delay them.
    stream.set_nodelay(true)?;
    set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES)?;
    Ok(Connection::Tcp(stream))
}

fn require_token(address: SocketAddr, token: Option<&BearerToken>) -> Result<(), ListenError> {
    if address.ip().to_canonical().is_loopback() || token.is_some() {
        Ok(())
    } else {
        Err(ListenError::NoToken { address })
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::socket_send_buffer_size;

    use super::*;

    #[tokio::test]
    async fn the_send_buffer_of_a_tcp_client_is_bounded() {
        let listener = Listener::tcp(([127, 0, 0, 1], 0).into(), None)
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let Connection::Tcp(stream) = listener.accept().await.unwrap() else {
            panic!("not a TCP connection");
        };
        // The kernel doubles the value for its bookkeeping, socket(7).
        assert_eq!(
            socket_send_buffer_size(&stream).unwrap(),
            2 * SEND_BUFFER_BYTES
        );
    }
}
