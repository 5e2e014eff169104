use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use vmm_protocol::Ending;
use vmm_protocol::frames::{HostMessage, INITIAL_CREDIT, PayloadMessage, Window};

use crate::metrics::{ExecutionCounters, RunningExecution};

use super::connection::{FrameInput, FrameOutput, ShimConnection};

/// Sends requests to the task. The task ends when all senders are dropped.
pub(super) type Requests = mpsc::UnboundedSender<HostMessage>;

/// How the execution ended; `None` inside if the connection was lost.
pub(super) type Outcome = Option<Option<Ending>>;

/// The stream of the execution. The connection has no other.
pub(super) const STREAM: u32 = 1;

/// Consumed bytes after which the shim gets new credit.
const CREDIT_STEP: u32 = INITIAL_CREDIT / 4;

/// How many bytes of input are sent in a frame.
const INPUT_CHUNK: usize = 16 << 10;

/// How long the shim may take to receive the last requests of a dropped execution.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Moves the data of one execution between its connection and its streams.
pub(super) struct ExecutionTask {
    input: FrameInput,
    output: FrameOutput,
    requests: mpsc::UnboundedReceiver<HostMessage>,
    stdin: Option<DuplexStream>,
    stdin_window: Window,
    stdout: OutputPipe,
    stderr: OutputPipe,
    /// The number of bytes that were read since the last credit for the shim.
    consumed: u32,
    outcome: watch::Sender<Outcome>,
    shared: Arc<Shared>,
    counters: Arc<ExecutionCounters>,
}

/// What an execution and its task share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Whether the stdin of the command stays open when that of the user ends.
    pub(super) keeps_stdin: AtomicBool,
    /// The number of bytes of output that the shim has dropped.
    pub(super) dropped_bytes: AtomicU64,
}

/// What the shim has sent, until the reader takes it. Bounded by the credit of the shim.
struct OutputPipe {
    /// `None` if the reader is gone: output is then discarded.
    pipe: Option<DuplexStream>,
    bytes: VecDeque<u8>,
}

/// The ends of the streams of an execution.
pub(super) struct TaskStreams {
    pub(super) stdin: DuplexStream,
    pub(super) stdout: DuplexStream,
    pub(super) stderr: DuplexStream,
}

impl ExecutionTask {
    pub(super) fn new(
        connection: ShimConnection,
        requests: mpsc::UnboundedReceiver<HostMessage>,
        streams: TaskStreams,
        input_credit: u32,
        outcome: watch::Sender<Outcome>,
        shared: Arc<Shared>,
        counters: Arc<ExecutionCounters>,
    ) -> Self {
        let ShimConnection { input, output, .. } = connection;
        Self {
            input,
            output,
            requests,
            stdin: Some(streams.stdin),
            stdin_window: Window::with_bytes(input_credit),
            stdout: OutputPipe::new(streams.stdout),
            stderr: OutputPipe::new(streams.stderr),
            consumed: 0,
            outcome,
            shared,
            counters,
        }
    }

    /// Runs until the execution has ended and its output is taken, or all handles of it are dropped.
    /// Counts its end, or returns `running` if that was not observed.
    pub(super) async fn run(
        mut self,
        mut running: Option<RunningExecution>,
    ) -> Option<RunningExecution> {
        let ending = self.relay().await;
        if let Some(ending) = &ending
            && let Some(running) = running.take()
        {
            running.end(ending);
        }
        self.set_outcome(ending);
        // The readers take what is left. They see the end when the pipes are dropped.
        let _ = tokio::join!(self.stdout.drain(), self.stderr.drain());
        running
    }

    /// Returns how the execution ended; `None` if the connection was lost or released.
    async fn relay(&mut self) -> Option<Ending> {
        let mut data = vec![0; INPUT_CHUNK];
        loop {
            let window = self.stdin_window.bytes().min(INPUT_CHUNK);
            let may_read = window > 0 && !self.output.has_pending();
            tokio::select! {
                message = self.input.receive() => {
                    if let Some(ending) = self.handle(message.ok()??) {
                        return Some(ending);
                    }
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.send(request)?,
                    None => return self.flush().await,
                },
                read = read(&mut self.stdin, &mut data[..window]), if may_read => {
                    self.forward_input(&data[..read.unwrap_or(0)])?;
                }
                written = self.output.flush(), if self.output.has_pending() => {
                    if written.is_err() {
                        return self.receive_rest().await;
                    }
                }
                count = self.stdout.write(), if !self.stdout.is_empty() => self.consume(count)?,
                count = self.stderr.write(), if !self.stderr.is_empty() => self.consume(count)?,
            }
        }
    }

    /// Receives what a shim has sent that does not read any more, because it ends.
    async fn receive_rest(&mut self) -> Option<Ending> {
        loop {
            let message = self.input.receive().await.ok()??;
            if let Some(ending) = self.handle(message) {
                return Some(ending);
            }
        }
    }

    /// Sends what is pending after the last handle of the execution was dropped, such as a signal, or
    /// input as far as its credit goes.
    async fn flush(&mut self) -> Option<Ending> {
        let mut data = vec![0; INPUT_CHUNK];
        while self.stdin.is_some() && self.stdin_window.bytes() > 0 {
            let window = self.stdin_window.bytes().min(INPUT_CHUNK);
            // Does not wait: the other end of the pipe is dropped.
            let read = read(&mut self.stdin, &mut data[..window]).await;
            self.forward_input(&data[..read.unwrap_or(0)])?;
        }
        let flush =
            async { while self.output.has_pending() && self.output.flush().await.is_ok() {} };
        let _ = timeout(FLUSH_TIMEOUT, flush).await;
        None
    }

    fn send(&mut self, message: HostMessage) -> Option<()> {
        self.output.push(STREAM, message).ok()
    }

    fn forward_input(&mut self, data: &[u8]) -> Option<()> {
        if data.is_empty() {
            self.stdin = None;
            if self.shared.keeps_stdin.load(Ordering::Acquire) {
                return Some(());
            }
            return self.send(HostMessage::CloseStdin);
        }
        self.counters.add_stdin(data.len());
        self.stdin_window.take(data.len());
        self.send(HostMessage::Stdin(data.to_vec()))
    }

    fn consume(&mut self, count: u32) -> Option<()> {
        self.consumed += count;
        if self.consumed < CREDIT_STEP {
            return Some(());
        }
        let bytes = std::mem::take(&mut self.consumed);
        self.send(HostMessage::Credit { bytes })
    }

    /// Reports how the execution ended. The first report counts: a connection can be lost after the ending is known.
    fn set_outcome(&self, ending: Option<Ending>) {
        self.outcome.send_if_modified(|outcome| {
            let is_first = outcome.is_none();
            outcome.get_or_insert(ending);
            is_first
        });
    }

    /// Handles a message of the shim. Returns the ending if it is the last one.
    fn handle(&mut self, message: PayloadMessage) -> Option<Ending> {
        match message {
            PayloadMessage::Stdout(data) => {
                self.counters.add_stdout(data.len());
                self.stdout.bytes.extend(data);
            }
            PayloadMessage::Stderr(data) => {
                self.counters.add_stderr(data.len());
                self.stderr.bytes.extend(data);
            }
            PayloadMessage::Dropped { bytes } => {
                self.shared
                    .dropped_bytes
                    .fetch_add(bytes, Ordering::Release);
            }
            PayloadMessage::Credit { bytes } => self.stdin_window.grant(bytes),
            PayloadMessage::Ended { ending } => self.set_outcome(Some(ending)),
            PayloadMessage::Exited { ending } => return Some(ending),
            _ => {}
        }
        None
    }
}

/// Reads input of the user. Never returns after its end.
async fn read(stdin: &mut Option<DuplexStream>, data: &mut [u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.read(data).await,
        None => std::future::pending().await,
    }
}

impl OutputPipe {
    fn new(pipe: DuplexStream) -> Self {
        Self {
            pipe: Some(pipe),
            bytes: VecDeque::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes a part of the output to the reader, or discards it if the reader is gone. Returns the
    /// number of bytes. Cancel-safe, as `write` is.
    async fn write(&mut self) -> u32 {
        let (bytes, _) = self.bytes.as_slices();
        let count = match &mut self.pipe {
            Some(pipe) => pipe.write(bytes).await.ok(),
            None => None,
        };
        if count.is_none() {
            self.pipe = None;
        }
        let count = count.unwrap_or(bytes.len());
        self.bytes.drain(..count);
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Writes all output, and closes the pipe.
    async fn drain(&mut self) {
        while !self.is_empty() {
            self.write().await;
        }
        self.pipe = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use tokio::net::UnixStream;
    use vmm_protocol::frames::Frame;

    use super::super::execution::execution_with_task;
    use super::*;

    /// More than the pipe to the user holds.
    const OUTPUT_LEN: usize = 48 << 10;

    #[tokio::test]
    async fn ending_is_received_from_a_shim_that_does_not_read_any_more() {
        let (client, shim) = UnixStream::pair().unwrap();
        let mut shim = shim.into_std().unwrap();
        shim.shutdown(Shutdown::Read).unwrap();
        let connection = ShimConnection::new(client);
        let counters = Arc::default();
        let (mut execution, task) =
            execution_with_task(connection, "exec-1".to_owned(), INITIAL_CREDIT, counters);
        let task = tokio::spawn(task.run(None));
        // Cannot be written to the shim.
        execution.stdin = None;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let ending = Ending::Exited { code: 3 };
        let message = PayloadMessage::Exited {
            ending: ending.clone(),
        };
        let mut frame = Vec::new();
        Frame::new(STREAM, message).encode(&mut frame).unwrap();
        shim.write_all(&frame).unwrap();
        assert_eq!(execution.wait().await.unwrap(), ending);
        drop(execution);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn an_ending_is_known_before_the_output_is_read_and_stays_if_the_shim_is_lost() {
        let (client, shim) = UnixStream::pair().unwrap();
        let mut shim = shim.into_std().unwrap();
        let connection = ShimConnection::new(client);
        let counters = Arc::default();
        let (mut execution, task) =
            execution_with_task(connection, "exec-1".to_owned(), INITIAL_CREDIT, counters);
        let task = tokio::spawn(task.run(None));
        let ending = Ending::Signaled { signal: 15 };
        let output = vec![b'x'; OUTPUT_LEN];
        let mut frames = Vec::new();
        for message in [
            PayloadMessage::Stdout(output.clone()),
            PayloadMessage::Ended {
                ending: ending.clone(),
            },
        ] {
            Frame::new(STREAM, message).encode(&mut frames).unwrap();
        }
        shim.write_all(&frames).unwrap();
        assert_eq!(execution.wait().await.unwrap(), ending);
        drop(shim);
        let mut read = Vec::new();
        let stdout = execution.stdout.as_mut().unwrap();
        stdout.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, output);
        task.await.unwrap();
        assert_eq!(execution.wait().await.unwrap(), ending);
    }
}
