use std::io;
use std::path::PathBuf;

use pidfd_spawn::{SpawnError, Step};

/// Why a container or one of its processes could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    #[error("{0}")]
    Usage(&'static str),
    #[error("the command of the process is empty")]
    NoCommand,
    #[error("the container is not ready")]
    NotReady,
    #[error("cannot {action}")]
    System {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("the working directory {} is outside of the root file system", .0.display())]
    OutsideOfRoot(PathBuf),
    #[error("signal {0} has ended the container before its program was executed")]
    Signaled(u32),
    #[error("the first process of the container has ended, or memory is short")]
    Ended(#[source] SpawnError),
    #[error(transparent)]
    Exec(SpawnError),
}

impl ContainerError {
    /// Returns a function that adds what could not be done to an error.
    pub(crate) fn system<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }

    /// Returns the exit code, as a shell has it for a command that it cannot run.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Exec(error) if error.step() == Step::Exec => {
                if error.kind() == io::ErrorKind::NotFound {
                    127
                } else {
                    126
                }
            }
            Self::Signaled(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
            _ => 125,
        }
    }
}
