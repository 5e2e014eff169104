use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::{Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The connection of a client.
#[derive(Debug)]
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

macro_rules! with {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self {
            Connection::Unix($stream) => $call,
            Connection::Tcp($stream) => $call,
        }
    };
}

/// The methods of [`AsyncRead`](tokio::io::AsyncRead) and [`AsyncWrite`](tokio::io::AsyncWrite) on a
/// shared reference.
impl Connection {
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(with!(self, stream => stream.poll_read_ready(cx)))?;
            let read = || self.read_arrived(buf);
            match with!(self, stream => stream.try_io(Interest::READABLE, read)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read),
            }
        }
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(with!(self, stream => stream.poll_write_ready(cx)))?;
            match with!(self, stream => stream.try_write(buf)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    pub(crate) fn shutdown(&self) -> io::Result<()> {
        Ok(shutdown(self, Shutdown::Write)?)
    }

    /// Reads what is in the socket buffer; fails with [`WouldBlock`](io::ErrorKind::WouldBlock) if the
    /// buffer is empty. Unlike [`poll_read`](Self::poll_read), does not depend on tokio's readiness.
    pub(crate) fn read_arrived(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let (_, read) = recv(self, buf.initialize_unfilled(), RecvFlags::DONTWAIT)?;
        buf.advance(read);
        Ok(())
    }

    /// Waits until the client has closed the connection or shut down its side, which over TCP looks
    /// the same. Never returns if the client has sent bytes that are not read.
    pub(crate) async fn left(&self) {
        let peek = || Ok(recv(self, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1);
        let peeked = with!(self, stream => stream.async_io(Interest::READABLE, peek).await);
        if matches!(peeked, Ok(1..)) {
            pending().await
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        with!(self, stream => stream.as_fd())
    }
}

/// Closes the connection of a request, even if a response is not yet fully sent.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionCloser(CancellationToken);

impl ConnectionCloser {
    /// `close` is the token that closes the connection.
    pub(crate) fn new(close: CancellationToken) -> Self {
        Self(close)
    }

    /// Waits until `token` is cancelled, then for `grace`, and closes the connection.
    pub(crate) async fn close_after(self, token: CancellationToken, grace: Duration) {
        token.cancelled().await;
        sleep(grace).await;
        self.0.cancel();
    }
}
