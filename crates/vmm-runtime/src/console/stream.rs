use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{ConsoleError, ConsoleReader};
use crate::boxes::MicroBox;
use crate::core::Core;
use crate::{BoxStatus, RuntimeError};

/// Which output [`VmmRuntime::console`](crate::VmmRuntime::console) returns: by default, all that is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsoleQuery {
    /// Whether new output follows until the box has ended.
    pub follow: bool,
    /// How many of the last lines are returned; all by default.
    pub tail: Option<u64>,
}

impl ConsoleQuery {
    /// Queries all output that is kept, and what follows until the box has ended.
    pub fn following() -> Self {
        Self::default().follow(true)
    }

    /// Sets [`follow`](Self::follow).
    #[must_use]
    pub fn follow(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// Sets [`tail`](Self::tail).
    #[must_use]
    pub fn tail(mut self, lines: impl Into<Option<u64>>) -> Self {
        self.tail = lines.into();
        self
    }
}

/// The output of a box in chunks, from [`VmmRuntime::console`](crate::VmmRuntime::console). Not more than
/// two chunks of 64 KiB are read ahead.
///
/// Works in every executor. The stream ends after an error.
#[derive(Debug)]
pub struct ConsoleStream {
    chunks: Receiver<Result<Vec<u8>, ConsoleError>>,
    /// Cancelled when the stream ends with the output that exists.
    end_of_following: CancellationToken,
}

/// The pause before the next read when there is no new output.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The longest chunk.
const CHUNK_BYTES: usize = 1 << 16;

impl ConsoleStream {
    /// Reads the output of a box in a task of the runtime.
    pub(crate) async fn open(
        core: Arc<Core>,
        bx: Arc<MicroBox>,
        query: ConsoleQuery,
    ) -> Result<Self, RuntimeError> {
        let reading = bx.console_readers.token();
        let mut reader = ConsoleReader::new(bx.dir().clone());
        if let Some(lines) = query.tail {
            let skip = move || reader.skip_to_last_lines(lines).map(|()| reader);
            reader = core.inspect(skip).await?.map_err(|source| {
                let id = bx.id().clone();
                RuntimeError::Console { id, source }
            })?;
        }
        if !core.is_owner() {
            return Err(RuntimeError::Closed);
        }
        let end_of_following = core.closing.child_token();
        let (sender, chunks) = channel(1);
        let end = end_of_following.clone();
        let task = send_output(Arc::clone(&core), bx, reader, end, sender);
        drop(core.spawn(async move {
            task.await;
            drop(reading);
        }));
        let stream = Self {
            chunks,
            end_of_following,
        };
        if !query.follow {
            stream.stop_following();
        }
        Ok(stream)
    }

    /// Makes the stream end with the output that the box has now.
    pub fn stop_following(&self) {
        self.end_of_following.cancel();
    }
}

impl Stream for ConsoleStream {
    type Item = Result<Vec<u8>, ConsoleError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.poll_recv(cx)
    }
}

/// Sends the output until its end, or until the stream is dropped.
async fn send_output(
    core: Arc<Core>,
    bx: Arc<MicroBox>,
    mut reader: ConsoleReader,
    end_of_following: CancellationToken,
    sender: Sender<Result<Vec<u8>, ConsoleError>>,
) {
    loop {
        // Checked before the read, so that a last read follows the end of the box.
        let is_last = end_of_following.is_cancelled() || has_ended(&core, &bx);
        let read = move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            let length = reader.read(&mut chunk);
            let chunk = length.map(|length| {
                chunk.truncate(length);
                chunk
            });
            (reader, chunk)
        };
        let Ok((next, chunk)) = core.inspect(read).await else {
            // The threads of the runtime have ended.
            return;
        };
        reader = next;
        match chunk {
            Ok(chunk) if chunk.is_empty() => {
                if is_last {
                    return;
                }
                tokio::select! {
                    () = sleep(POLL_INTERVAL) => {}
                    () = end_of_following.cancelled() => {}
                    () = sender.closed() => return,
                }
            }
            chunk => {
                let is_error = chunk.is_err();
                if sender.send(chunk).await.is_err() || is_error {
                    return;
                }
            }
        }
    }
}

fn has_ended(core: &Core, bx: &MicroBox) -> bool {
    let info = bx.info();
    let has_ended = matches!(info.status, BoxStatus::Stopped | BoxStatus::Failed);
    let is_removed = || core.boxes.find(bx.id()).is_err();
    has_ended && !info.restarting || is_removed()
}
