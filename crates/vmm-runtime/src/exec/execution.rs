use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;
use tokio::io::{AsyncReadExt, duplex};
use tokio::sync::{mpsc, watch};
use vmm_protocol::frames::{
    ExecSpec, Execution as ExecutionInfo, GuestStats, HostMessage, PayloadMessage,
    RequestErrorKind, TerminalSize,
};
use vmm_protocol::{BoxDir, Ending};

use super::connection::ShimConnection;
use super::error::ExecError;
use super::streams::{ExecutionInput, ExecutionOutput};
use super::task::{ExecutionTask, Outcome, Requests, STREAM, Shared, TaskStreams};
use crate::core::Core;
use crate::metrics::{ExecutionCounters, RunningExecution};

/// How many bytes a stream holds between the task and its user.
const PIPE_BYTES: usize = 16 << 10;

/// A command that runs in a box, beside the payload.
///
/// [`VmmRuntime::exec`](crate::VmmRuntime::exec) starts one, and
/// [`VmmRuntime::attach`](crate::VmmRuntime::attach) returns to one that runs. As with a child
/// process, a command that writes more than its reader reads waits: take the streams, or drop them.
///
/// Dropping the `Execution` and its streams does not end the command. The shim then keeps the last
/// 64 KiB of output, and how the command ended. The stdin of the command stays open, unless it was
/// taken and dropped.
#[derive(Debug)]
pub struct Execution {
    id: String,
    /// The stdin of the command; discarded if [`ExecSpec::stdin`] is not set.
    pub stdin: Option<ExecutionInput>,
    /// The stdout of the command, or all output of a command with a terminal.
    pub stdout: Option<ExecutionOutput>,
    /// The stderr of the command.
    pub stderr: Option<ExecutionOutput>,
    requests: Requests,
    outcome: watch::Receiver<Outcome>,
    shared: Arc<Shared>,
}

impl Drop for Execution {
    fn drop(&mut self) {
        self.shared.keeps_stdin.store(true, Ordering::Release);
    }
}

impl Execution {
    /// Returns the id of the execution.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits until the command has ended, and returns how.
    ///
    /// Does not wait until its output is read, but a command that writes can wait for that before it ends.
    ///
    /// # Errors
    ///
    /// [`ExecError::Interrupted`] if the shim ended first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn wait(&self) -> Result<Ending, ExecError> {
        self.end().await
    }

    /// Returns what [`wait`](Self::wait) does, without borrowing the execution.
    pub(super) fn end(&self) -> impl Future<Output = Result<Ending, ExecError>> + use<> {
        let mut outcome = self.outcome.clone();
        async move {
            let outcome = outcome.wait_for(Option::is_some).await;
            let ending = outcome.ok().and_then(|outcome| outcome.clone().flatten());
            ending.ok_or(ExecError::Interrupted)
        }
    }

    /// Returns how many bytes of output the shim has dropped because no client read them, before the
    /// output that was read last.
    pub fn dropped_bytes(&self) -> u64 {
        self.shared.dropped_bytes.load(Ordering::Acquire)
    }

    /// Reads all output, and waits until the command has ended. Closes the stdin first.
    ///
    /// # Errors
    ///
    /// [`ExecError::Interrupted`] if the shim ended first.
    ///
    /// # Cancel safety
    ///
    /// Output that was read is lost.
    pub async fn output(mut self) -> Result<ExecOutput, ExecError> {
        self.stdin = None;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let read = async |stream: &mut Option<ExecutionOutput>, data| {
            if let Some(stream) = stream {
                // A pipe of this process does not fail.
                let _ = stream.read_to_end(data).await;
            }
        };
        tokio::join!(
            read(&mut self.stdout, &mut stdout),
            read(&mut self.stderr, &mut stderr)
        );
        Ok(ExecOutput {
            ending: self.wait().await?,
            stdout,
            stderr,
        })
    }

    /// Sends a signal, 1 to 64, to the command and its process group. Has no effect on a command
    /// that has ended.
    ///
    /// # Errors
    ///
    /// [`ExecError::Ended`].
    pub fn signal(&self, signal: i32) -> Result<(), ExecError> {
        self.request(HostMessage::signal(signal))
    }

    /// Sends a signal, 1 to 64, to the command, and not to the other processes of its process group. Has no
    /// effect on a command that has ended.
    ///
    /// # Errors
    ///
    /// [`ExecError::Ended`].
    pub fn signal_command(&self, signal: i32) -> Result<(), ExecError> {
        self.request(HostMessage::Signal {
            signal,
            only_command: true,
        })
    }

    /// Resizes the terminal of the command. Has no effect on a command without one.
    ///
    /// # Errors
    ///
    /// [`ExecError::Ended`].
    pub fn resize(&self, size: TerminalSize) -> Result<(), ExecError> {
        self.request(HostMessage::Resize(size))
    }

    fn request(&self, message: HostMessage) -> Result<(), ExecError> {
        self.requests.send(message).map_err(|_| ExecError::Ended)
    }
}

/// What [`Execution::output`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// How the command ended.
    pub ending: Ending,
    /// Its output.
    pub stdout: Vec<u8>,
    /// Its error output.
    pub stderr: Vec<u8>,
}

/// Runs a command in the box with this directory.
pub(crate) async fn exec(
    core: Arc<Core>,
    dir: BoxDir,
    counters: Arc<ExecutionCounters>,
    spec: ExecSpec,
) -> Result<Execution, ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    let id = spec.id.clone();
    let request = HostMessage::Exec(spec);
    let input_credit = request_start(&mut connection, &counters, request).await?;
    let running = counters.start();
    let (execution, task) = execution_with_task(connection, id.clone(), input_credit, counters);
    drop(core.spawn(async move {
        if let Some(running) = task.run(Some(running)).await {
            // Its client has left.
            watch_by_id(&dir, id, running).await;
        }
    }));
    Ok(execution)
}

/// Requests the start of a command. Returns the credit for its input.
async fn request_start(
    connection: &mut ShimConnection,
    counters: &ExecutionCounters,
    request: HostMessage,
) -> Result<u32, ExecError> {
    let started = match connection.request(STREAM, request).await {
        Ok(PayloadMessage::Started { input_credit, .. }) => Ok(input_credit),
        Ok(PayloadMessage::Exited {
            ending: Ending::Failed { kind, message },
        }) => Err(ExecError::Start { kind, message }),
        Ok(_) => Err(ExecError::Interrupted),
        Err(error) => Err(error),
    };
    started.inspect_err(|_| counters.add_start_failure())
}

/// Waits for the end of a command on the connection that has started it, and counts it.
async fn watch(mut connection: ShimConnection, running: RunningExecution) {
    while let Ok(Some(message)) = connection.input.receive().await {
        if let PayloadMessage::Exited { ending } = message {
            return running.end(&ending);
        }
    }
}

/// Waits for the end of a command that another connection has started, and counts it.
async fn watch_by_id(dir: &BoxDir, id: String, running: RunningExecution) {
    let Ok(mut connection) = ShimConnection::open(dir).await else {
        return;
    };
    let output = false;
    let attach = HostMessage::Attach { id, output };
    if connection.request(STREAM, attach).await.is_ok() {
        watch(connection, running).await;
    }
}

/// Starts a command in the box with this directory, without attaching to it. Returns its id.
pub(crate) async fn start(
    core: Arc<Core>,
    dir: BoxDir,
    counters: Arc<ExecutionCounters>,
    spec: ExecSpec,
) -> Result<String, ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    let id = spec.id.clone();
    let request = HostMessage::Start(spec);
    request_start(&mut connection, &counters, request).await?;
    drop(core.spawn(watch(connection, counters.start())));
    Ok(id)
}

/// Sends a message to an execution of the box with this directory, without attaching to its output.
pub(crate) async fn send(dir: BoxDir, id: String, message: HostMessage) -> Result<(), ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    let output = false;
    let attach = HostMessage::Attach { id, output };
    connection.request(STREAM, attach).await?;
    connection.output.push(STREAM, message)?;
    // The shim handles messages in order. It sends the ending first if there is one.
    let ping = HostMessage::Ping { token: 0 };
    match connection.request(0, ping).await? {
        PayloadMessage::Exited { .. } => Err(ExecError::Ended),
        _ => Ok(()),
    }
}

/// Freezes the payload of the box with this directory, or lets it continue.
pub(crate) async fn set_paused(dir: &BoxDir, paused: bool) -> Result<(), ExecError> {
    let mut connection = ShimConnection::open(dir).await?;
    let request = if paused {
        HostMessage::Pause
    } else {
        HostMessage::Resume
    };
    connection.request(STREAM, request).await.map(drop)
}

/// Returns what the guest of the box with this directory uses; `None` if the payload is not a guest.
pub(crate) async fn guest_stats(dir: BoxDir) -> Result<Option<GuestStats>, ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    match connection.request(STREAM, HostMessage::Stats).await {
        Ok(PayloadMessage::Stats(stats)) => Ok(Some(stats)),
        Err(ExecError::Refused(error)) if error.kind == RequestErrorKind::Unsupported => Ok(None),
        Ok(_) => Err(ExecError::Interrupted),
        Err(error) => Err(error),
    }
}

/// Sends a request to the engine of the box with this directory, and returns the result.
pub(crate) async fn call(dir: BoxDir, request: Value) -> Result<Value, ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    match connection
        .request(STREAM, HostMessage::Call { request })
        .await?
    {
        PayloadMessage::CallResult { result } => Ok(result),
        _ => Err(ExecError::Interrupted),
    }
}

/// Kills an execution of the box with this directory, and removes it from the list.
pub(crate) async fn remove(dir: BoxDir, id: String) -> Result<(), ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    let remove = HostMessage::Remove { id };
    connection.request(0, remove).await.map(drop)
}

/// Attaches to an execution of the box with this directory.
pub(crate) async fn attach(
    core: Arc<Core>,
    dir: BoxDir,
    counters: Arc<ExecutionCounters>,
    id: String,
) -> Result<Execution, ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    let attach = HostMessage::Attach {
        id: id.clone(),
        output: true,
    };
    match connection.request(STREAM, attach).await? {
        PayloadMessage::Started { input_credit, .. } => {
            let (execution, task) = execution_with_task(connection, id, input_credit, counters);
            drop(core.spawn(async move { drop(task.run(None).await) }));
            Ok(execution)
        }
        _ => Err(ExecError::Interrupted),
    }
}

/// Creates an execution, and the task that moves its data.
pub(super) fn execution_with_task(
    connection: ShimConnection,
    id: String,
    input_credit: u32,
    counters: Arc<ExecutionCounters>,
) -> (Execution, ExecutionTask) {
    let (stdin, task_stdin) = duplex(PIPE_BYTES);
    let (stdout, task_stdout) = duplex(PIPE_BYTES);
    let (stderr, task_stderr) = duplex(PIPE_BYTES);
    let (requests, receiver) = mpsc::unbounded_channel();
    let (sender, outcome) = watch::channel(None);
    let streams = TaskStreams {
        stdin: task_stdin,
        stdout: task_stdout,
        stderr: task_stderr,
    };
    let shared = Arc::new(Shared::default());
    let task = ExecutionTask::new(
        connection,
        receiver,
        streams,
        input_credit,
        sender,
        Arc::clone(&shared),
        counters,
    );
    let output = |stream| ExecutionOutput {
        stream,
        _requests: requests.clone(),
    };
    let execution = Execution {
        id,
        stdin: Some(ExecutionInput {
            stream: stdin,
            _requests: requests.clone(),
        }),
        stdout: Some(output(stdout)),
        stderr: Some(output(stderr)),
        requests,
        outcome,
        shared,
    };
    (execution, task)
}

/// Returns the executions of the box with this directory.
pub(crate) async fn list(dir: BoxDir) -> Result<Vec<ExecutionInfo>, ExecError> {
    let mut connection = ShimConnection::open(&dir).await?;
    let mut response = connection.request(0, HostMessage::List).await?;
    let mut all = Vec::new();
    while let PayloadMessage::Executions { executions, more } = response {
        all.extend(executions);
        if !more {
            return Ok(all);
        }
        response = connection.next_response().await?;
    }
    Err(ExecError::Interrupted)
}
