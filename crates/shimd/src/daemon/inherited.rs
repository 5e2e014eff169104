use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use vmm_rest::{BearerToken, ListenError, Listener};

use crate::failure::Failure;

/// The sockets that the service manager has bound for this daemon (`sd_listen_fds(3)`).
#[derive(Debug, Default)]
pub(super) struct Inherited {
    unix: Vec<UnixListener>,
    tcp: Vec<TcpListener>,
}

impl Inherited {
    /// Takes them over, and what announces them out of the environment: to be called while there
    /// is one thread.
    pub(super) fn take() -> Result<Self, Failure> {
        let mut passed = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..passed.len() {
            if let Ok(Some(listener)) = passed.take_unix_listener(index) {
                inherited.unix.push(listener);
            } else if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
                inherited.tcp.push(listener);
            } else {
                return Err(Failure::NoStreamSocket { index });
            }
        }
        Ok(inherited)
    }

    /// Whether one of them stands in for the socket in the home.
    pub(super) fn has_unix(&self) -> bool {
        !self.unix.is_empty()
    }

    pub(super) fn listeners(
        self,
        token: Option<&BearerToken>,
    ) -> impl Iterator<Item = Result<Listener, ListenError>> {
        let unix = self.unix.into_iter().map(Listener::from_unix);
        let tcp = self.tcp.into_iter();
        unix.chain(tcp.map(move |listener| Listener::from_tcp(listener, token.cloned())))
    }
}
