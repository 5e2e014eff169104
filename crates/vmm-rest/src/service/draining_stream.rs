use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::Connection;

/// A connection that, once the server shuts down, ends after the bytes that have arrived by then:
/// requests in the socket buffer are still served, and no further ones are awaited.
#[derive(Debug)]
pub(crate) struct DrainingStream {
    connection: Arc<Connection>,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl DrainingStream {
    /// Cancelling `closing` shuts the server down.
    pub(crate) fn new(connection: Arc<Connection>, closing: CancellationToken) -> Self {
        Self {
            connection,
            closing: Box::pin(closing.cancelled_owned()),
        }
    }
}

impl AsyncRead for DrainingStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closing.as_mut().poll(cx).is_pending() {
            return this.connection.poll_read(cx, buf);
        }
        Poll::Ready(match this.connection.read_arrived(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            read => read,
        })
    }
}

impl AsyncWrite for DrainingStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.connection.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.connection.shutdown())
    }
}
