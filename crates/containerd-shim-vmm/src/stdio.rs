use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy};
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use vmm_runtime::Execution;

use crate::error::ShimError;
use crate::logger::Loggers;

/// Where the streams of a process go: the FIFOs of containerd, the URI of a file or of a logging program, or
/// nowhere if a path is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct StdioPaths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// The opened streams of a process.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    stdin: Option<pipe::Receiver>,
    /// Keeps the stdin open while no client has it.
    stdin_keeper: Option<pipe::Sender>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    logger: Option<DropGuard>,
}

#[derive(Debug)]
enum Output {
    Pipe(pipe::Sender),
    File(tokio::fs::File),
}

/// What can be done with connected streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    stdin_keeper: Option<pipe::Sender>,
    /// The tasks that copy output.
    copies: TaskTracker,
    discard: CancellationToken,
}

impl StdioPaths {
    /// Opens the streams of a process of this container.
    pub(crate) async fn open(
        &self,
        loggers: &Loggers,
        container: &str,
    ) -> Result<Stdio, ShimError> {
        let mut stdio = Stdio::default();
        if !self.stdin.is_empty() {
            let open = || -> io::Result<_> {
                let receiver = pipe::OpenOptions::new().open_receiver(&self.stdin)?;
                let keeper = pipe::OpenOptions::new().open_sender(&self.stdin)?;
                Ok((receiver, keeper))
            };
            let (stdin, keeper) = open().map_err(ShimError::file("open", &self.stdin))?;
            (stdio.stdin, stdio.stdin_keeper) = (Some(stdin), Some(keeper));
        }
        // A logging program of the stdout receives the stderr, too.
        if self.stdout.starts_with("binary://") {
            let logger = loggers.start(&self.stdout, container).await?;
            stdio.stdout = Some(Output::Pipe(logger.stdout));
            stdio.stderr = Some(Output::Pipe(logger.stderr));
            stdio.logger = Some(logger.process_end);
            return Ok(stdio);
        }
        stdio.stdout = open_output(&self.stdout)?;
        if !self.terminal {
            stdio.stderr = open_output(&self.stderr)?;
        }
        Ok(stdio)
    }
}

fn open_output(path: &str) -> Result<Option<Output>, ShimError> {
    let output = match path.split_once("://") {
        _ if path.is_empty() => return Ok(None),
        Some(("file", path)) => {
            let mut options = std::fs::OpenOptions::new();
            let file = options.create(true).append(true).open(path);
            file.map(|file| Output::File(file.into()))
        }
        Some(_) => {
            return Err(ShimError::Unsupported(
                "the output of a container can go to a FIFO, to file://PATH, or both streams to binary://PATH",
            ));
        }
        // With a reader of its own, the FIFO stays open while no client has it.
        None => pipe::OpenOptions::new()
            .read_write(true)
            .open_sender(Path::new(path))
            .map(Output::Pipe),
    };
    output.map(Some).map_err(ShimError::file("open", path))
}

impl Stdio {
    /// Moves the data of an execution, until its streams end.
    pub(crate) fn connect(self, execution: &mut Execution) -> Streams {
        if let (Some(mut stdin), Some(mut input)) = (self.stdin, execution.stdin.take()) {
            tokio::spawn(async move {
                let _ = copy(&mut stdin, &mut input).await;
                let _ = input.shutdown().await;
            });
        }
        let streams = Streams {
            stdin_keeper: self.stdin_keeper,
            ..Streams::default()
        };
        // Dropped with the last copy.
        let logger = Arc::new(self.logger);
        streams.forward(execution.stdout.take(), self.stdout, &logger);
        streams.forward(execution.stderr.take(), self.stderr, &logger);
        streams
    }
}

async fn copy_output(
    mut source: impl AsyncRead + Unpin,
    mut destination: impl AsyncWrite + Unpin,
    discard: CancellationToken,
) {
    tokio::select! {
        _ = copy(&mut source, &mut destination) => {}
        () = discard.cancelled() => {}
    }
    let _ = destination.flush().await;
}

impl Streams {
    /// Lets the stdin end when its last client has closed it.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin_keeper = None;
    }

    /// Copies an output. Without a destination it is discarded.
    fn forward(
        &self,
        source: Option<impl AsyncRead + Unpin + Send + 'static>,
        destination: Option<Output>,
        logger: &Arc<Option<DropGuard>>,
    ) {
        let (Some(source), Some(destination)) = (source, destination) else {
            return;
        };
        let (discard, logger) = (self.discard.clone(), Arc::clone(logger));
        self.copies.spawn(async move {
            match destination {
                Output::Pipe(pipe) => copy_output(source, pipe, discard).await,
                Output::File(file) => copy_output(source, file, discard).await,
            }
            drop(logger);
        });
    }

    /// Waits until all output of a process that has ended is copied. Discards what is left at the deadline, because its
    /// reader does not read.
    pub(crate) async fn end_output(self, deadline: Instant) {
        self.copies.close();
        if timeout_at(deadline, self.copies.wait()).await.is_err() {
            self.discard.cancel();
            self.copies.wait().await;
        }
    }
}
