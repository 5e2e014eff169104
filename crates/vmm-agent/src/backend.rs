use std::time::Duration;

use pidfd_spawn::{Child, Command, SpawnError, Step};
use vmm_protocol::frames::{BootPhase, ExecSpec, GetSpec, GuestStats, PutSpec, RequestError};
use vmm_protocol::network::GuestNetwork;
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

    /// Spawns the command of an execution, to which the server has added its streams and its session. The thread of
    /// the server has to be left as it was.
    ///
    /// # Errors
    ///
    /// The ending of an execution that cannot be started.
    fn spawn(&self, spec: &ExecSpec, command: &mut Command) -> Result<Child, Ending> {
        let spawned = command.spawn();
        spawned.map_err(|error| self.spawn_error(spec, error))
    }

    /// Converts the error of a command that could not be started.
    fn spawn_error(&self, _spec: &ExecSpec, error: SpawnError) -> Ending {
        let kind = match (error.step(), error.kind()) {
            (Step::Exec, std::io::ErrorKind::NotFound) => FailureKind::NotFound,
            (Step::Exec, _) => FailureKind::NotExecutable,
            _ => FailureKind::Engine,
        };
        Ending::failed(kind, with_causes(&error))
    }

    /// Returns how many processes the kernel has killed for lack of memory, if the backend knows only their
    /// number. The server calls this before it starts a command.
    fn oom_kills(&self) -> u64 {
        0
    }

    /// Returns whether the kernel has killed the command with this pid for lack of memory; `kills_before` is
    /// what [`oom_kills`](Self::oom_kills) returned before its start. The server calls this once, after
    /// SIGKILL has ended a command that it did not kill.
    fn has_run_out_of_memory(&self, _pid: u32, _kills_before: u64) -> bool {
        false
    }

    /// Returns a command that extracts the tar stream on its stdin. If that fails, the command writes
    /// the cause to its stderr, and exits with [`RequestErrorKind::exit_code`](vmm_protocol::frames::RequestErrorKind::exit_code).
    ///
    /// # Errors
    ///
    /// [`RequestError`]; by default, that it is not supported.
    fn put_command(&self, _spec: &PutSpec) -> Result<Command, RequestError> {
        Err(RequestError::unsupported("put"))
    }

    /// Returns a command that writes files as a tar stream to its stdout. It reports a failure as
    /// that of [`put_command`](Self::put_command) does.
    ///
    /// # Errors
    ///
    /// [`RequestError`]; by default, that it is not supported.
    fn get_command(&self, _spec: &GetSpec) -> Result<Command, RequestError> {
        Err(RequestError::unsupported("get"))
    }

    /// Returns what the guest uses.
    ///
    /// # Errors
    ///
    /// [`RequestError`]; by default, that it is not supported.
    fn stats(&self) -> Result<GuestStats, RequestError> {
        Err(RequestError::unsupported("stats"))
    }

    /// Configures the network of the guest.
    ///
    /// # Errors
    ///
    /// [`RequestError`]; by default, that it is not supported.
    fn configure_network(&self, _network: &GuestNetwork) -> Result<(), RequestError> {
        Err(RequestError::unsupported("configure_network"))
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

    fn spawn(&self, spec: &ExecSpec, command: &mut Command) -> Result<Child, Ending> {
        (**self).spawn(spec, command)
    }

    fn spawn_error(&self, spec: &ExecSpec, error: SpawnError) -> Ending {
        (**self).spawn_error(spec, error)
    }

    fn oom_kills(&self) -> u64 {
        (**self).oom_kills()
    }

    fn has_run_out_of_memory(&self, pid: u32, kills_before: u64) -> bool {
        (**self).has_run_out_of_memory(pid, kills_before)
    }

    fn put_command(&self, spec: &PutSpec) -> Result<Command, RequestError> {
        (**self).put_command(spec)
    }

    fn get_command(&self, spec: &GetSpec) -> Result<Command, RequestError> {
        (**self).get_command(spec)
    }

    fn stats(&self) -> Result<GuestStats, RequestError> {
        (**self).stats()
    }

    fn configure_network(&self, network: &GuestNetwork) -> Result<(), RequestError> {
        (**self).configure_network(network)
    }

    fn boot_phases(&self) -> Vec<BootPhase> {
        (**self).boot_phases()
    }

    fn shut_down(&self, grace: Duration) -> Result<(), RequestError> {
        (**self).shut_down(grace)
    }
}
