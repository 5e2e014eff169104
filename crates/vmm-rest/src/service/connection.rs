use std::future::pending;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::{Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A client that has come.
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

/// Like the methods of [`AsyncRead`](tokio::io::AsyncRead) and
/// [`AsyncWrite`](tokio::io::AsyncWrite), but for a connection that is shared.
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

    /// What the kernel has now; [`WouldBlock`](io::ErrorKind::WouldBlock) if that is nothing.
    /// [`poll_read`](Self::poll_read) waits until tokio has been told of it.
    pub(crate) fn read_arrived(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let (_, read) = recv(self, buf.initialize_unfilled(), RecvFlags::DONTWAIT)?;
        buf.advance(read);
        Ok(())
    }

    /// Until the client has hung up, or shut down its side, which over TCP looks the same. For ever
    /// if it has said something that nobody has read.
    pub(crate) async fn left(&self) {
        let peek = || Ok(recv(self, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1);
        let said = with!(self, stream => stream.async_io(Interest::READABLE, peek).await);
        if matches!(said, Ok(1..)) {
            pending().await
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        with!(self, stream => stream.as_fd())
    }
}
