use std::io;
use std::path::PathBuf;

use containerd_shim_protos::protobuf;
use containerd_shim_protos::ttrpc::{self, Code};
use vmm_protocol::with_causes;
use vmm_runtime::RuntimeError;

/// Why an action or a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    #[error(
        "unexpected argument {0:?}; containerd starts this program for containers with the runtime \
         io.containerd.vmm.v1"
    )]
    Usage(String),
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot {action}")]
    System {
        action: &'static str,
        source: io::Error,
    },
    #[error("the configuration {} is not valid", path.display())]
    Config {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("the OCI spec of the container is not valid: {0}")]
    Spec(String),
    #[error("cannot encode a message")]
    Encode(#[source] protobuf::Error),
    #[error("cannot start the server of the pod")]
    Spawn(#[source] pidfd_spawn::SpawnError),
    #[error("cannot serve the Task API")]
    Serve(#[source] ttrpc::Error),
    #[error("the server of the pod still runs, and does not end")]
    StillServed,
    #[error("the guest of the pod cannot be run")]
    Guest(#[source] RuntimeError),
    #[error("the agent of the guest cannot {action} the container: {message}")]
    Agent {
        action: &'static str,
        message: String,
    },
    #[error("{what} {id:?} not found")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {id:?} exists already")]
    Exists { what: &'static str, id: String },
    #[error("the process {0}")]
    State(&'static str),
    #[error("the container {0}")]
    ContainerState(&'static str),
    #[error("{0} is not a signal; use 0 to 64")]
    Signal(u32),
    #[error("the server of the pod shuts down")]
    Closed,
    #[error("containerd ended, or its request timed out, before the container was created")]
    Abandoned,
    #[error("the process has finished already")]
    Finished,
    #[error("{0}")]
    Unsupported(&'static str),
}

impl ShimError {
    /// Returns a function that adds what could not be done to the error of a file.
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source: source.into(),
        }
    }

    /// Returns a function that adds what could not be done to the error of a system call.
    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }

    pub(crate) fn not_found(what: &'static str, id: &str) -> Self {
        let id = id.to_owned();
        Self::NotFound { what, id }
    }
}

impl From<ShimError> for ttrpc::Error {
    fn from(error: ShimError) -> Self {
        let code = match error {
            ShimError::NotFound { .. } | ShimError::Finished => Code::NOT_FOUND,
            ShimError::Exists { .. } => Code::ALREADY_EXISTS,
            ShimError::State(_) | ShimError::ContainerState(_) => Code::FAILED_PRECONDITION,
            ShimError::Spec(_) | ShimError::Signal(_) => Code::INVALID_ARGUMENT,
            ShimError::Closed => Code::UNAVAILABLE,
            ShimError::Unsupported(_) => Code::UNIMPLEMENTED,
            _ => Code::UNKNOWN,
        };
        Self::RpcStatus(ttrpc::get_status(code, with_causes(&error)))
    }
}
