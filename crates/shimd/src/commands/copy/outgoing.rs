use std::io::{self, PipeWriter};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use vmm_archive::ArchiveError;

/// An archive that a thread writes while it is read.
///
/// If it cannot be completed, its last read fails, so that the server does not take it for complete.
pub(super) struct Outgoing {
    pipe: pipe::Receiver,
    /// `None` after the end.
    result: Option<oneshot::Receiver<Result<(), ArchiveError>>>,
    failure: ArchiveFailure,
}

/// Why an archive could not be completed.
#[derive(Clone, Default)]
pub(super) struct ArchiveFailure(Arc<Mutex<Option<ArchiveError>>>);

impl ArchiveFailure {
    pub(super) fn take(&self) -> Option<ArchiveError> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<ArchiveError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outgoing {
    /// Starts the thread, which ends with the process: a read of a terminal cannot be cancelled.
    ///
    /// Must be called in a tokio runtime.
    pub(super) fn start(
        write: impl FnOnce(PipeWriter) -> Result<(), ArchiveError> + Send + 'static,
    ) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let (sender, result) = oneshot::channel();
        thread::Builder::new()
            .name("archive".to_owned())
            // The receiver is dropped after a failure of the server.
            .spawn(move || drop(sender.send(write(writer))))?;
        Ok(Self {
            pipe: pipe::Receiver::from_owned_fd(reader.into())?,
            result: Some(result),
            failure: ArchiveFailure::default(),
        })
    }

    pub(super) fn failure(&self) -> ArchiveFailure {
        self.failure.clone()
    }
}

impl AsyncRead for Outgoing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        if buffer.filled().len() > length {
            return Poll::Ready(Ok(()));
        }
        let Some(result) = &mut self.result else {
            return Poll::Ready(Ok(()));
        };
        let result = ready!(Pin::new(result).poll(cx));
        self.result = None;
        let incomplete = || io::Error::other("the archive is not complete");
        match result.map_err(|_| incomplete())? {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => {
                *self.failure.lock() = Some(error);
                Poll::Ready(Err(incomplete()))
            }
        }
    }
}
