use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::task::Requests;

/// The stdin of an [`Execution`](super::Execution).
///
/// [`shutdown`](tokio::io::AsyncWriteExt::shutdown) closes the stdin of the command; dropping this
/// value does so too.
#[pin_project]
#[derive(Debug)]
pub struct ExecutionInput {
    #[pin]
    pub(super) stream: DuplexStream,
    /// Keeps the task alive.
    pub(super) _requests: Requests,
}

/// The stdout or stderr of an [`Execution`](super::Execution).
///
/// A command that writes faster than this is read waits. Dropping this value discards the output.
#[pin_project]
#[derive(Debug)]
pub struct ExecutionOutput {
    #[pin]
    pub(super) stream: DuplexStream,
    /// Keeps the task alive.
    pub(super) _requests: Requests,
}

impl AsyncWrite for ExecutionInput {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_shutdown(cx)
    }
}

impl AsyncRead for ExecutionOutput {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().stream.poll_read(cx, buffer)
    }
}
