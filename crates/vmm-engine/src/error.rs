use std::io;
use std::path::PathBuf;

use vmm_protocol::{Ending, FailureKind, FileError};

/// Why a payload could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No such program, in the `PATH` of the payload if it is a bare name.
    #[error("there is no program {}", program.display())]
    NotFound {
        /// As the spec has it.
        program: PathBuf,
    },
    /// The program is there, and the kernel refuses to execute it.
    #[error("cannot execute {}: {source}", program.display())]
    NotExecutable {
        /// As the spec has it.
        program: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The spec lacks something, or asks for what this engine cannot do.
    #[error("{0}")]
    Spec(String),
    /// A file in the box's directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The payload ended before it was ready.
    #[error("the payload ended before it was ready")]
    EndedEarly,
    /// The system refused something.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// What only this engine knows.
    #[error("{0}")]
    Other(String),
}

impl EngineError {
    /// Returns a closure that wraps the system's error, for `map_err`.
    pub fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

impl From<EngineError> for Ending {
    fn from(error: EngineError) -> Self {
        let kind = match error {
            EngineError::NotFound { .. } => FailureKind::NotFound,
            EngineError::NotExecutable { .. } => FailureKind::NotExecutable,
            EngineError::File(_) => FailureKind::Storage,
            EngineError::Spec(_) => FailureKind::Spec,
            _ => FailureKind::Engine,
        };
        Self::failed(kind, error.to_string())
    }
}
