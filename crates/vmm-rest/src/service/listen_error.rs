use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a server cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Other hosts can reach the address, and there is no token.
    #[error(
        "other hosts can reach {address}, and there is no token; start the server with a token, or \
         listen on a loopback address"
    )]
    NoToken {
        /// The address of the listener.
        address: SocketAddr,
    },
    /// Another server listens on the Unix socket.
    #[error("another server listens on {}; stop it, or choose another path", path.display())]
    InUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The path of the Unix socket exists and is not a socket.
    #[error("{} is not a socket; move it away, or choose another path", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system cannot create the socket.
    #[error("cannot listen on {at}")]
    System {
        /// The path or address of the socket.
        at: String,
        /// The error of the system.
        source: io::Error,
    },
}
