use std::error::Error;
use std::io;
use std::path::PathBuf;

use vmm_archive::ArchiveError;
use vmm_image::BuildError;
use vmm_rest::{ClientError, ImageError, ListenError, TokenError};
use vmm_runtime::{ConsoleError, RuntimeError, with_causes};
use vmm_shim::EngineError;

/// The exit code of docker for a command line that it cannot parse, and for a `run` that fails
/// outside the payload.
pub(crate) const EXIT_SHIMD_FAILED: u8 = 125;

/// Why a command failed.
///
/// The message does not repeat what `source()` returns; [`Failure::with_causes`] has both.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Client(ClientError),
    #[error(
        "cannot connect to a daemon at {at}: {cause}; start one with `shimd serve`, or select \
         another with --home or --url"
    )]
    NoDaemon { at: String, cause: String },
    #[error(
        "cannot connect to the daemon at {at}: {cause}; it belongs to another user: run the \
         command as that user, or select a daemon of your own with --home"
    )]
    AccessDenied { at: String, cause: String },
    #[error(
        "the daemon at {at} does not respond: it is stopped, stuck, or overloaded; read its log, \
         or restart it"
    )]
    NoResponse { at: String },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("invalid token in SHIMD_TOKEN; set it to the token of the daemon")]
    TokenVariable(#[source] TokenError),
    #[error("{0}{hint}", hint = home_hint(.0))]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    ImageBuild(#[from] BuildError),
    #[error("invalid option of the image")]
    ImageSpec(#[source] EngineError),
    #[error(
        "socket {index} of the service manager is not a stream socket; declare it with \
         ListenStream= in its unit"
    )]
    NotAStreamSocket { index: usize },
    #[error("invalid RUST_LOG (an example is RUST_LOG=debug)")]
    LogFilter(#[from] tracing_subscriber::filter::FromEnvError),
    #[error("no home directory for the daemon: HOME is not set; select one with --home")]
    NoHome,
    #[error(
        "the daemon ended before the box {id}; start it again, and run `shimd inspect {id}` to see \
         how the box has ended"
    )]
    DaemonEnded { id: String },
    #[error("box {name} is not running; start it with `shimd start {name}`")]
    NotRunning { name: String },
    #[error(
        "the daemon ended before the execution {id}, which may go on; `shimd attach` returns to it"
    )]
    ExecutionLost { id: String },
    #[error(
        "{} executions are running in box {name}: {}; name one",
        running.len(),
        running.join(", ")
    )]
    WhichExecution { name: String, running: Vec<String> },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("one of SRC and DST must be BOX:PATH, and the other a local path or `-`")]
    CopyWithoutBox,
    #[error("stdout is a terminal; redirect the archive to a file or to tar")]
    ArchiveOnTerminal,
    #[error("stdin is not a terminal; omit --tty")]
    InputNotATerminal,
    #[error(
        "{stream} is not a terminal; in programs, use `shimd ps --format json` and `shimd metrics \
         --format json`"
    )]
    NotATerminal { stream: &'static str },
    #[error(
        "the format openmetrics has no metrics of a single box; omit the box, or use another format"
    )]
    DaemonOnlyFormat,
    #[error("{failure}")]
    Interrupted { signal: i32, failure: Box<Self> },
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(
        "{bytes} bytes of output are not shown: the shim rotated console.log before they were \
         read; to keep more, set `console` in the image"
    )]
    OutputRotated { bytes: u64 },
    #[error(
        "cannot write the manual pages to {}; choose a directory that you can write to",
        dir.display()
    )]
    ManualPages { dir: PathBuf, source: io::Error },
    #[error("cannot print")]
    Output(#[source] io::Error),
    #[error("cannot {action}")]
    System {
        action: &'static str,
        source: io::Error,
    },
}

impl Failure {
    /// Returns a function that wraps the error of a system call which `action` needs.
    pub(crate) fn system(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { action, source }
    }

    /// Records the signal that interrupted the command, if any.
    pub(crate) fn interrupted_by(self, signal: Option<i32>) -> Self {
        match signal {
            Some(signal) => Self::Interrupted {
                signal,
                failure: Box::new(self),
            },
            None => self,
        }
    }

    /// Returns the exit code of `run` when the payload has none.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { signal, .. } => {
                u8::try_from(128 + signal).unwrap_or(EXIT_SHIMD_FAILED)
            }
            _ => EXIT_SHIMD_FAILED,
        }
    }

    /// Returns true if the connection to a daemon was lost.
    pub(crate) fn is_daemon_lost(&self) -> bool {
        matches!(
            self,
            Self::DaemonEnded { .. } | Self::Client(ClientError::Interrupted { .. })
        )
    }

    /// Returns true if stdout could not be written.
    pub(crate) fn is_output_error(&self) -> bool {
        matches!(self, Self::Output(_))
    }

    /// Returns true if the reader of stdout has closed it.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Returns the message, followed by every cause that the message does not contain.
    pub(crate) fn with_causes(&self) -> String {
        match self {
            Self::Interrupted { failure, .. } => failure.with_causes(),
            // The errors in between are layers of the HTTP library.
            Self::Client(error) => {
                let (message, root) = (error.to_string(), root_of(error).to_string());
                if message.contains(&root) {
                    message
                } else {
                    format!("{message}: {root}")
                }
            }
            other => with_causes(other),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { at, source } => {
                let root = root_of(&source);
                let cause = root.to_string();
                let kind = root.downcast_ref::<io::Error>().map(io::Error::kind);
                match kind {
                    Some(io::ErrorKind::PermissionDenied) => Self::AccessDenied { at, cause },
                    _ => Self::NoDaemon { at, cause },
                }
            }
            other => Self::Client(other),
        }
    }
}

/// Returns the option that selects another home, for errors that advise that.
fn home_hint(error: &RuntimeError) -> &'static str {
    match error {
        RuntimeError::HomeOfAnother { .. } | RuntimeError::OpenHome { .. } => " (option --home)",
        _ => "",
    }
}

fn root_of<'e>(mut error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_printed_once() {
        let no_cause = Failure::Token(TokenError::TooShort);
        assert_eq!(no_cause.with_causes(), no_cause.to_string());
        let read = Failure::Token(TokenError::Read {
            path: "/token".into(),
            source: io::Error::other("no such token"),
        });
        assert_eq!(read.with_causes().matches("no such token").count(), 1);
        let system = Failure::system("draw")(io::Error::other("closed"));
        assert_eq!(system.with_causes(), "cannot draw: closed");
        let interrupted = system.interrupted_by(Some(15));
        assert_eq!(interrupted.with_causes(), "cannot draw: closed");
    }
}
