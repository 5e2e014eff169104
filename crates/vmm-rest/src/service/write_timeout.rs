use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A stream whose writes fail when the peer reads nothing for a while.
///
/// Unlike a [`timeout`](tokio::time::timeout) around the whole response, it permits slow readers. A
/// [`WriteTimeoutSwitch`] permits those that stop reading.
#[derive(Debug)]
pub(crate) struct WriteTimeout<S> {
    stream: S,
    timeout: Duration,
    /// The deadline of the pending write; `None` if no write is pending.
    deadline: Option<Pin<Box<Sleep>>>,
    switch: WriteTimeoutSwitch,
}

/// Switches the [`WriteTimeout`] of a connection off.
#[derive(Clone, Debug, Default)]
pub(crate) struct WriteTimeoutSwitch(Arc<AtomicBool>);

impl WriteTimeoutSwitch {
    pub(crate) fn disable(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_disabled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S> WriteTimeout<S> {
    pub(crate) fn new(stream: S, timeout: Duration) -> Self {
        Self {
            stream,
            timeout,
            deadline: None,
            switch: WriteTimeoutSwitch::default(),
        }
    }

    pub(crate) fn switch(&self) -> WriteTimeoutSwitch {
        self.switch.clone()
    }

    fn check_deadline<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() || self.switch.is_disabled() {
            self.deadline = None;
            return progress;
        }
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(self.timeout)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.check_deadline(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.check_deadline(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut_down = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.check_deadline(cx, shut_down)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_write_times_out_when_the_peer_reads_nothing() {
        let (stream, _peer) = duplex(4);
        let mut stream = WriteTimeout::new(stream, Duration::from_millis(50));
        stream.write_all(b"full").await.unwrap();
        let failed = timeout(TEST_TIMEOUT, stream.write_all(b"x")).await.unwrap();
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_waits_for_a_peer_whose_timeout_is_switched_off() {
        let (stream, mut peer) = duplex(4);
        let mut stream = WriteTimeout::new(stream, Duration::from_secs(1));
        stream.switch().disable();
        let read = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            peer.read_exact(&mut [0; 5]).await
        };
        let (written, read) = tokio::join!(stream.write_all(b"fulls"), read);
        written.unwrap();
        read.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_does_not_time_out() {
        let (stream, mut peer) = duplex(1);
        let mut stream = WriteTimeout::new(stream, Duration::from_secs(30));
        let written = stream.write_all(b"a long response");
        let read = async {
            let mut text = [0; b"a long response".len()];
            for byte in &mut text {
                tokio::time::sleep(Duration::from_secs(29)).await;
                *byte = peer.read_u8().await.unwrap();
            }
            text
        };
        let (written, text) = tokio::join!(written, read);
        written.unwrap();
        assert_eq!(&text, b"a long response");
    }
}
