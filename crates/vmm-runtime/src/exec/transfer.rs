use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project::pin_project;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use vmm_protocol::frames::{HostMessage, PayloadMessage, RequestError, RequestErrorKind};
use vmm_protocol::{BoxDir, Ending};

use super::ExecError;
use super::connection::ShimConnection;
use super::execution::{Execution, execution_with_task};
use super::streams::ExecutionOutput;
use super::task::STREAM;
use crate::core::Core;

/// How many bytes of an archive are copied at once.
const COPY_BYTES: usize = 16 << 10;

/// The longest cause of a failure, in bytes. A guest can send more.
const MAX_CAUSE_BYTES: u64 = 1 << 10;

/// A tar archive of files in a guest, from [`VmmRuntime::get`](crate::VmmRuntime::get).
///
/// A transfer that fails later, or is interrupted, is an error of a read: what ends without an error
/// is complete. Each read after the end returns the end of the file, or an error, again. The guest waits while this is not read. Dropping this value ends the transfer.
#[pin_project]
pub struct FileArchive {
    first: io::Cursor<Vec<u8>>,
    #[pin]
    stdout: ExecutionOutput,
    end: End,
}

/// The end of a transfer.
enum End {
    Awaited(Pin<Box<dyn Future<Output = Result<(), ExecError>> + Send + Sync>>),
    Complete,
    /// A read has returned the cause.
    Failed,
}

/// Where the header of an entry has its type, tar(5).
const TYPE_OFFSET: usize = 156;

impl FileArchive {
    /// Returns whether the first entry is a directory; `None` if its header is not the first one, as for
    /// a name of more than 100 bytes. A guest can send anything.
    pub fn is_dir(&self) -> Option<bool> {
        match self.first.get_ref().get(TYPE_OFFSET)? {
            b'5' => Some(true),
            0 | b'0'..=b'7' => Some(false),
            _ => None,
        }
    }
}

impl fmt::Debug for FileArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileArchive").finish_non_exhaustive()
    }
}

impl AsyncRead for FileArchive {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let length = buffer.filled().len();
        ready!(Pin::new(this.first).poll_read(cx, buffer))?;
        if buffer.filled().len() == length {
            ready!(this.stdout.poll_read(cx, buffer))?;
        }
        if buffer.filled().len() > length || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let result = match this.end {
            End::Awaited(end) => ready!(end.as_mut().poll(cx)).map_err(io::Error::other),
            End::Complete => Ok(()),
            End::Failed => Err(io::Error::other("the file transfer has failed")),
        };
        *this.end = match result {
            Ok(()) => End::Complete,
            Err(_) => End::Failed,
        };
        Poll::Ready(result)
    }
}

/// Starts a file transfer in the box with this directory.
pub(crate) async fn start_transfer(
    core: Arc<Core>,
    dir: BoxDir,
    request: HostMessage,
) -> Result<Execution, ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    match connection.request(STREAM, request).await? {
        PayloadMessage::Started { input_credit, .. } => {
            // Not counted as a command.
            let counters = Arc::default();
            let (transfer, task) =
                execution_with_task(connection, String::new(), input_credit, counters);
            drop(core.spawn(async move { drop(task.run(None).await) }));
            Ok(transfer)
        }
        PayloadMessage::Exited {
            ending: Ending::Failed { kind, message },
        } => Err(ExecError::Start { kind, message }),
        _ => Err(ExecError::Interrupted),
    }
}

/// Sends an archive, and waits until it is extracted. The transfer is killed if the future is dropped.
pub(crate) async fn send_archive(
    mut transfer: Execution,
    mut archive: impl AsyncRead + Unpin,
) -> Result<(), ExecError> {
    transfer.stdout = None;
    let (early_end, end) = (transfer.end(), transfer.end());
    // Not taken out of the execution, which leaves the stdin of the guest open when it is dropped: an
    // archive that is not complete has no end.
    let stdin = transfer.stdin.as_mut().ok_or(ExecError::Interrupted)?;
    let copy = async {
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = archive.read(&mut buffer).await;
            let length = read.map_err(ExecError::Archive)?;
            let written = stdin.write_all(&buffer[..length]).await;
            // The guest does not read after a failure, which it reports.
            if length == 0 || written.is_err() {
                let _ = stdin.shutdown().await;
                return end.await;
            }
        }
    };
    let ending = tokio::select! {
        ending = early_end => ending?,
        ending = copy => ending?,
    };
    outcome(ending, transfer.stderr.take()).await
}

/// Waits for the begin of the archive that a transfer sends.
pub(crate) async fn receive_archive(mut transfer: Execution) -> Result<FileArchive, ExecError> {
    transfer.stdin = None;
    let mut stdout = transfer.stdout.take().ok_or(ExecError::Interrupted)?;
    let mut first = vec![0; COPY_BYTES];
    let read = stdout.read(&mut first).await;
    let length = read.map_err(|_| ExecError::Interrupted)?;
    first.truncate(length);
    let end = Box::pin(async move {
        let ending = transfer.end().await?;
        outcome(ending, transfer.stderr.take()).await
    });
    if length == 0 {
        end.await?;
        // No archive is empty.
        return Err(ExecError::Interrupted);
    }
    Ok(FileArchive {
        first: io::Cursor::new(first),
        stdout,
        end: End::Awaited(end),
    })
}

/// Returns the result of a transfer that has ended.
async fn outcome(ending: Ending, stderr: Option<ExecutionOutput>) -> Result<(), ExecError> {
    let mut cause = Vec::new();
    if let Some(stderr) = stderr {
        // A pipe of this process does not fail.
        let _ = stderr.take(MAX_CAUSE_BYTES).read_to_end(&mut cause).await;
    }
    let failed = |message| (RequestErrorKind::Failed, message);
    let (kind, message) = match ending {
        Ending::Exited { code: 0 } => return Ok(()),
        Ending::Exited { code } => (
            RequestErrorKind::from_exit_code(code),
            String::from_utf8_lossy(&cause).into_owned(),
        ),
        Ending::OutOfMemory => failed("the guest has no memory left for the transfer".to_owned()),
        Ending::Signaled { signal } => failed(format!("signal {signal} ended the file transfer")),
        Ending::Failed { message, .. } => failed(message),
        _ => failed("the file transfer ended early".to_owned()),
    };
    Err(ExecError::Refused(RequestError::new(kind, message)))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::sync::mpsc;

    use super::*;

    fn archive(result: Result<(), ExecError>) -> FileArchive {
        // The other end is closed: the archive has no more data than the first.
        let (stream, _) = duplex(1);
        FileArchive {
            first: io::Cursor::new(b"tar".to_vec()),
            stdout: ExecutionOutput {
                stream,
                _requests: mpsc::unbounded_channel().0,
            },
            end: End::Awaited(Box::pin(async { result })),
        }
    }

    #[tokio::test]
    async fn a_read_after_the_end_returns_the_end_again() {
        let mut archive = archive(Ok(()));
        let mut data = Vec::new();
        for _ in 0..3 {
            archive.read_to_end(&mut data).await.unwrap();
        }
        assert_eq!(data, b"tar");
    }

    #[tokio::test]
    async fn a_read_after_a_failure_fails_again() {
        let mut archive = archive(Err(ExecError::Interrupted));
        let mut data = Vec::new();
        for _ in 0..3 {
            archive.read_to_end(&mut data).await.unwrap_err();
        }
    }
}
