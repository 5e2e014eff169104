use std::time::Duration;

use pidfd_spawn::{Command, SpawnError, Step};
use vmm_protocol::frames::{BootPhase, ExecSpec, RequestErrorKind};
use vmm_protocol::{Ending, FailureKind, with_causes};

/// What differs between a guest and a shim that run commands beside their payload.
pub trait Backend {
    /// Returns the command of an execution with its program, arguments, environment, directory,
    /// user and limits. The server adds its streams and its session.
    ///
    /// # Errors
    ///
    /// The ending of an execution that cannot be started.
    fn command(&self, spec: &ExecSpec) -> Result<Command, Ending>;

    /// Converts the error of a command that could not be started.
    fn spawn_error(&self, _spec: &ExecSpec, error: SpawnError) -> Ending {
        let kind = match (error.step(), error.kind()) {
            (Step::Exec, std::io::ErrorKind::NotFound) => FailureKind::NotFound,
            (Step::Exec, _) => FailureKind::NotExecutable,
            _ => FailureKind::Engine,
        };
        Ending::failed(kind, with_causes(&error))
    }

    /// Returns whether the kernel has killed the command with this pid for lack of memory. The server
    /// asks once, after SIGKILL has ended a command that it did not kill.
    fn has_run_out_of_memory(&self, _pid: u32) -> bool {
        false
    }

    /// Returns how long the phases of the boot took, in the order in which they ended.
    fn boot_phases(&self) -> Vec<BootPhase> {
        Vec::new()
    }

    /// Begins to stop the payload, which may take the time to end. The server goes on.
    ///
    /// # Errors
    ///
    /// [`RequestError`]; by default, that it is not supported.
    fn shut_down(&self, _grace: Duration) -> Result<(), RequestError> {
        Err(RequestError::unsupported("shutdown"))
    }
}

impl<B: Backend + ?Sized> Backend for std::sync::Arc<B> {
    fn command(&self, spec: &ExecSpec) -> Result<Command, Ending> {
        (**self).command(spec)
    }

    fn spawn_error(&self, spec: &ExecSpec, error: SpawnError) -> Ending {
        (**self).spawn_error(spec, error)
    }

    fn has_run_out_of_memory(&self, pid: u32) -> bool {
        (**self).has_run_out_of_memory(pid)
    }

    fn boot_phases(&self) -> Vec<BootPhase> {
        (**self).boot_phases()
    }

    fn shut_down(&self, grace: Duration) -> Result<(), RequestError> {
        (**self).shut_down(grace)
    }
}

/// A request that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// The kind of failure, for programs.
    pub kind: RequestErrorKind,
    /// The cause, for people.
    pub message: String,
}

impl RequestError {
    /// Creates the error of a request that the payload cannot carry out.
    pub fn unsupported(request: &str) -> Self {
        Self {
            kind: RequestErrorKind::Unsupported,
            message: format!("the payload does not support the request {request}"),
        }
    }
}
