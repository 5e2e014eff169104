use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::{Message, STDERR, STDIN, STDOUT};
use super::{GetSpec, GuestStats, INITIAL_CREDIT, PutSpec, RequestError};
use crate::Ending;
use crate::bounds;
use crate::network::GuestNetwork;

/// A message of the host: of the VMM runtime to a shim, or of a shim to a guest agent.
///
/// The first frame of a connection is `Hello`. `Exec`, `Attach`, `Put` and `Get` open the stream of
/// their frame; `Stdin`, `CloseStdin`, `Signal`, `Resize` and `Credit` belong to an open stream; all
/// others are sent on stream 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum HostMessage {
    /// Opens the connection.
    Hello {
        /// The [`VERSION`](super::VERSION) of the host.
        version: u32,
    },
    /// Starts a command. The response is `Started` or `Exited`.
    Exec(ExecSpec),
    /// Starts a command in a shim, without attaching to it. The response is `Started` or `Exited`.
    /// `Exited` also follows `Started` when the command has ended. The output waits a while for a client
    /// that attaches.
    Start(ExecSpec),
    /// Opens the stream for an execution that a shim has. The response is `Started` or `Error`.
    Attach {
        /// The id of the execution.
        id: String,
        /// Whether the stream gets the output: first what is kept, then more as it is written. Only
        /// one stream at a time does. Without, the stream is for signals and sizes, and gets
        /// `Exited` when the command has ended, before its output is read.
        output: bool,
    },
    /// Requests the list of executions.
    List,
    /// Removes an execution from the list, and kills it if it still runs.
    Remove {
        /// The id of the execution.
        id: String,
    },
    /// Data for the stdin of the command, or of a file transfer.
    #[serde(skip)]
    Stdin(Vec<u8>),
    /// Closes the stdin of the command, or ends a file transfer.
    CloseStdin,
    /// Sends a signal to the command and its process group.
    Signal {
        /// The signal number, 1 to 64, as in `signal(7)`.
        #[serde(deserialize_with = "bounds::deserialize_signal")]
        signal: i32,
        /// Whether only the command gets the signal. An agent that does not know the field sends it to the
        /// process group.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        only_command: bool,
    },
    /// Resizes the terminal of the command.
    Resize(TerminalSize),
    /// Lets the payload send more output on the stream.
    Credit {
        /// The number of bytes.
        bytes: u32,
    },
    /// Freezes the payload. The response is `Done` or `Error`.
    Pause,
    /// Lets a frozen payload continue. The response is `Done` or `Error`.
    Resume,
    /// Requests what the guest uses. The response is `Stats` or `Error`.
    Stats,
    /// A request that only some engines know. The response is `CallResult` or `Error`.
    Call {
        /// The request, whose form the engine defines.
        request: Value,
    },
    /// Extracts the tar stream that follows as `Stdin` in the guest. See [`PutSpec`].
    Put(PutSpec),
    /// Requests files of the guest as a tar stream, sent as `Stdout`. See [`GetSpec`].
    Get(GetSpec),
    /// Configures the network of the guest. The response is `Done` or `Error`.
    ConfigureNetwork(GuestNetwork),
    /// Requests a `Pong` with the same number.
    Ping {
        /// Any number.
        token: u64,
    },
    /// Stops the payload as its power button would.
    Shutdown {
        /// How long the workload may take to stop, in milliseconds.
        grace_millis: u64,
    },
}

/// A message of the payload: of a shim to the VMM runtime, or of a guest agent to its shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PayloadMessage {
    /// The response to `Hello`.
    Ready {
        /// The [`VERSION`](super::VERSION) of the payload.
        version: u32,
        /// How long the phases of the boot took, in the order in which they ended.
        #[serde(default)]
        boot: Vec<BootPhase>,
    },
    /// The command or file transfer of the stream runs.
    Started {
        /// Its pid, as the payload sees it.
        pid: u32,
        /// How many bytes of input the host may send: less than
        /// [`INITIAL_CREDIT`](super::INITIAL_CREDIT) if the input of an earlier client still waits.
        #[serde(default = "initial_credit")]
        input_credit: u32,
    },
    /// Output of the command, or the data of a file transfer.
    #[serde(skip)]
    Stdout(Vec<u8>),
    /// Error output of the command, or why a file transfer failed. A command with a terminal has none.
    #[serde(skip)]
    Stderr(Vec<u8>),
    /// Output of the command that was not kept while no client was attached.
    Dropped {
        /// The number of bytes.
        bytes: u64,
    },
    /// Lets the host send more data on the stream.
    Credit {
        /// The number of bytes.
        bytes: u32,
    },
    /// The command or file transfer of the stream has ended, before all its output has been sent. The rest
    /// follows, then `Exited`. Sent only if the output waits for credit.
    Ended {
        /// How it ended.
        ending: Ending,
    },
    /// The command or file transfer of the stream has ended, and all its output has been sent. Closes
    /// the stream.
    Exited {
        /// How it ended; `Failed` if it could not be started. A file transfer that failed has the
        /// [code](super::RequestErrorKind::exit_code) of its error.
        ending: Ending,
    },
    /// The response to `List`.
    Executions {
        /// The executions that run, and those that have ended and are not removed.
        executions: Vec<Execution>,
        /// Whether a frame with more executions follows, because one cannot hold them all.
        #[serde(default)]
        more: bool,
    },
    /// The request was carried out.
    Done,
    /// The response to `Stats`.
    Stats(GuestStats),
    /// The response to `Call`.
    CallResult {
        /// The result, whose form the engine defines.
        result: Value,
    },
    /// The response to `Ping`.
    Pong {
        /// The number of the ping.
        token: u64,
    },
    /// The request of the stream was not carried out. Closes the stream.
    Error(RequestError),
}

/// A command to run beside the payload of a box.
///
/// The fields `env` and `command` can contain secrets. The `Debug` output has only the program.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ExecSpec {
    /// The id of the execution, which the host chooses.
    pub id: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The environment variables of the command, in addition to those of the payload.
    pub env: BTreeMap<String, String>,
    /// The working directory; that of the payload by default.
    pub working_dir: Option<PathBuf>,
    /// The user and group as `USER[:GROUP]`, names or numbers; those of the payload by default.
    pub user: Option<String>,
    /// The size of the terminal of the command; pipes by default.
    pub terminal: Option<TerminalSize>,
    /// Whether the command gets a stdin; `/dev/null` by default.
    pub stdin: bool,
    /// Whether stdout and stderr are one pipe, which keeps their order and arrives as stdout; two pipes by
    /// default. A terminal is always one stream.
    pub merge_output: bool,
    /// After how many milliseconds the command is killed; never by default.
    pub timeout_millis: Option<u64>,
}

impl HostMessage {
    /// Creates a signal for a command and its process group.
    pub fn signal(signal: i32) -> Self {
        let only_command = false;
        Self::Signal {
            signal,
            only_command,
        }
    }
}

impl ExecSpec {
    /// Creates the spec of a command without stdin and terminal.
    pub fn new<S: Into<String>>(
        id: impl Into<String>,
        command: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            id: id.into(),
            command: command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}

impl fmt::Debug for ExecSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSpec")
            .field("id", &self.id)
            .field("program", &self.command.first())
            .field("working_dir", &self.working_dir)
            .field("user", &self.user)
            .field("terminal", &self.terminal)
            .field("stdin", &self.stdin)
            .field("merge_output", &self.merge_output)
            .field("timeout_millis", &self.timeout_millis)
            .finish_non_exhaustive()
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// The height.
    pub rows: u16,
    /// The width.
    pub cols: u16,
}

/// An execution in the list of a shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// The id that the host has chosen.
    pub id: String,
    /// When it started, in milliseconds since the Unix epoch.
    pub started_at_millis: u64,
    /// How long it ran, or has been running, in milliseconds.
    pub duration_millis: u64,
    /// How it ended, if it has.
    pub ending: Option<Ending>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether it was killed because its [`timeout`](ExecSpec::timeout_millis) was over.
    #[serde(default)]
    pub timed_out: bool,
}

/// A phase of the boot of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootPhase {
    /// The name, such as `kernel` or `modules`.
    pub name: String,
    /// How long the phase took, in microseconds.
    pub micros: u64,
}

fn initial_credit() -> u32 {
    INITIAL_CREDIT
}

impl Message for HostMessage {
    fn as_data(&self) -> Option<(u8, &[u8])> {
        match self {
            Self::Stdin(data) => Some((STDIN, data)),
            _ => None,
        }
    }

    fn from_data(kind: u8, data: Vec<u8>) -> Option<Self> {
        (kind == STDIN).then_some(Self::Stdin(data))
    }
}

impl Message for PayloadMessage {
    fn as_data(&self) -> Option<(u8, &[u8])> {
        match self {
            Self::Stdout(data) => Some((STDOUT, data)),
            Self::Stderr(data) => Some((STDERR, data)),
            _ => None,
        }
    }

    fn from_data(kind: u8, data: Vec<u8>) -> Option<Self> {
        match kind {
            STDOUT => Some(Self::Stdout(data)),
            STDERR => Some(Self::Stderr(data)),
            _ => None,
        }
    }
}
