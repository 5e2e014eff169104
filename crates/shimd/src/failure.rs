use std::error::Error;
use std::io;
use std::path::PathBuf;

use vmm_rest::{ClientError, ImageError, ListenError, TokenError};
use vmm_runtime::RuntimeError;

use crate::cli::OWN_FAILURE;

/// Why a command could not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}{cause}", cause = root_cause(.0))]
    Client(ClientError),
    #[error(
        "no daemon answers at {at} ({cause}); start one with `shimd serve`, or say where it is \
         with --home or --url"
    )]
    NoDaemon { at: String, cause: String },
    #[error(
        "{at} may not be opened by this user ({cause}): its daemon is somebody else's; become its \
         user, or have a daemon of your own with --home"
    )]
    NotYours { at: String, cause: String },
    #[error("the daemon at {at} does not answer: it is stopped, stuck, or overloaded")]
    Silent { at: String },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token file {}: {source}", path.display())]
    TokenFile { path: PathBuf, source: TokenError },
    #[error("SHIMD_TOKEN: {0}")]
    TokenVariable(#[source] TokenError),
    #[error("{0}{hint}", hint = home_hint(.0))]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(
        "the socket {index} of the service manager is no stream socket; its unit needs \
         ListenStream= for it"
    )]
    NoStreamSocket { index: usize },
    #[error("RUST_LOG: {0}; try RUST_LOG=debug")]
    LogFilter(#[from] tracing_subscriber::filter::FromEnvError),
    #[error("no home: HOME is not set; give one with --home")]
    NoHome,
    #[error("the daemon has ended before the box {id} did")]
    DaemonEnded { id: String },
    #[error(
        "this is no terminal; programs read `shimd ps --format json` and `shimd metrics --format \
         json`"
    )]
    NoTerminal,
    #[error("the numbers of a box are not for Prometheus; leave the box out, or the format")]
    OfDaemonOnly,
    #[error("{failure}")]
    Interrupted { signal: i32, failure: Box<Self> },
    #[error("what the box prints cannot be shown: its console.log is no regular file any more")]
    NoConsole,
    #[error(
        "{bytes} bytes that the box printed are not shown: console.log was rotated before they could \
         be read; an image can keep more, with `console`"
    )]
    OutputRotated { bytes: u64 },
    #[error("cannot print: {0}")]
    Output(#[source] io::Error),
    #[error("cannot {action}: {source}")]
    System {
        action: &'static str,
        source: io::Error,
    },
}

impl Failure {
    pub(crate) fn system(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { action, source }
    }

    /// The same, if a signal has asked for the end before.
    pub(crate) fn when_interrupted_by(self, signal: Option<i32>) -> Self {
        match signal {
            Some(signal) => Self::Interrupted {
                signal,
                failure: Box::new(self),
            },
            None => self,
        }
    }

    /// What `run` exits with, where no payload has a say.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { signal, .. } => u8::try_from(128 + signal).unwrap_or(OWN_FAILURE),
            _ => OWN_FAILURE,
        }
    }

    /// A daemon that was there is so no more.
    pub(crate) fn is_of_lost_daemon(&self) -> bool {
        matches!(
            self,
            Self::DaemonEnded { .. } | Self::Client(ClientError::Interrupted { .. })
        )
    }

    pub(crate) fn is_of_output(&self) -> bool {
        matches!(self, Self::Output(_))
    }

    /// Whoever was reading has seen enough.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { at, source } => {
                let root = root_of(&source);
                let cause = root.to_string();
                let system = root.downcast_ref::<io::Error>().map(io::Error::kind);
                match system {
                    Some(io::ErrorKind::PermissionDenied) => Self::NotYours { at, cause },
                    _ => Self::NoDaemon { at, cause },
                }
            }
            other => Self::Client(other),
        }
    }
}

/// How another home is chosen, where that is what the error advises.
fn home_hint(error: &RuntimeError) -> &'static str {
    match error {
        RuntimeError::HomeOfAnother { .. } | RuntimeError::OpenHome { .. } => " with --home",
        _ => "",
    }
}

fn root_of<'e>(mut error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// What began it, unless the message has said so.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let cause = root_of(error).to_string();
    match error.to_string().contains(&cause) {
        true => String::new(),
        false => format!(": {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_it_is_told_once() {
        let plain = TokenError::TooShort;
        assert_eq!(root_cause(&plain), "");
        let told = TokenError::Read {
            path: "/token".into(),
            source: io::Error::other("no"),
        };
        assert_eq!(root_cause(&told), "");
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] io::Error);
        assert_eq!(root_cause(&Outer(io::Error::other("inner"))), ": inner");
    }
}
