use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::Connection;

/// A connection that ends, once the server is to end, after what has arrived by then: whoever has
/// asked something is answered, and nobody is waited for.
#[derive(Debug)]
pub(crate) struct Closing {
    connection: Arc<Connection>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Closing {
    /// The server is to end when the token is cancelled.
    pub(crate) fn new(connection: Arc<Connection>, closing: CancellationToken) -> Self {
        Self {
            connection,
            closed: Box::pin(closing.cancelled_owned()),
        }
    }
}

impl AsyncRead for Closing {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closed.as_mut().poll(cx).is_pending() {
            return this.connection.poll_read(cx, buf);
        }
        Poll::Ready(match this.connection.read_arrived(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            read => read,
        })
    }
}

impl AsyncWrite for Closing {
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
