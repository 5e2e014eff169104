use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pidfd_spawn::{Child, Command};
use serde::Serialize;
use vmm_agent::Backend;
use vmm_protocol::frames::{
    BootPhase, ExecSpec, GetSpec, GuestStats, PutSpec, RequestError, RequestErrorKind,
};
use vmm_protocol::network::GuestNetwork;
use vmm_protocol::{DEFAULT_PATH, Ending, FailureKind, with_causes};

use crate::container::{ContainerError, PidNamespaces};
use crate::init::is_init;
use crate::oom_log::OomLog;
use crate::users::User;
use crate::{network, stats, transfer};

/// This program. Its file is not in the root file system of a guest.
const SELF: &str = "/proc/self/exe";

/// How long processes may take to end at SIGTERM, in milliseconds, if the guest itself requests it.
const DEFAULT_GRACE_MILLIS: u64 = 10_000;

/// How the guest is to be stopped.
#[derive(Debug)]
pub(crate) struct Shutdown {
    grace_millis: AtomicU64,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            grace_millis: AtomicU64::new(DEFAULT_GRACE_MILLIS),
        }
    }
}

impl Shutdown {
    /// Returns how long processes may take to end at SIGTERM.
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_millis.load(Ordering::Acquire))
    }
}

/// Starts commands in the guest.
#[derive(Debug)]
pub(crate) struct GuestBackend {
    boot: Vec<BootPhase>,
    shutdown: Arc<Shutdown>,
    oom_log: Mutex<OomLog>,
    pid_namespaces: PidNamespaces,
}

impl GuestBackend {
    pub(crate) fn new(boot: Vec<BootPhase>, shutdown: Arc<Shutdown>) -> Self {
        Self {
            boot,
            shutdown,
            oom_log: Mutex::new(OomLog::open()),
            pid_namespaces: PidNamespaces::default(),
        }
    }
}

impl Backend for GuestBackend {
    fn command(&self, spec: &ExecSpec) -> Result<Command, Ending> {
        let invalid = |message| Ending::failed(FailureKind::Spec, message);
        let (program, args) = spec
            .command
            .split_first()
            .ok_or_else(|| invalid("the command is empty".to_owned()))?;
        let user = match &spec.user {
            Some(name) => Some(User::find(name).map_err(invalid)?),
            None => None,
        };
        let home = user.as_ref().map_or("/root", |user| &user.home);
        let mut command = new_command(program);
        command
            .args(args)
            .env("HOME", home)
            .current_dir(spec.working_dir.as_deref().unwrap_or(Path::new("/")));
        if spec.terminal.is_some() {
            command.env("TERM", "xterm");
        }
        command.envs(&spec.env);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid).groups(&user.groups);
        }
        Ok(command)
    }

    fn spawn(&self, spec: &ExecSpec, command: &mut Command) -> Result<Child, Ending> {
        let spawned = match spec.command.split_first() {
            Some((program, args)) if program == SELF => self.pid_namespaces.spawn(args, command),
            _ => command.spawn().map_err(ContainerError::Exec),
        };
        spawned.map_err(|error| match error {
            ContainerError::Exec(error) => self.spawn_error(spec, error),
            error => Ending::failed(FailureKind::Engine, with_causes(&error)),
        })
    }

    fn put_command(&self, spec: &PutSpec) -> Result<Command, RequestError> {
        transfer_command(transfer::PUT, spec)
    }

    fn get_command(&self, spec: &GetSpec) -> Result<Command, RequestError> {
        transfer_command(transfer::GET, spec)
    }

    fn stats(&self) -> Result<GuestStats, RequestError> {
        stats::read().map_err(|error| {
            let message = format!("cannot read /proc: {error}");
            RequestError::new(RequestErrorKind::Failed, message)
        })
    }

    fn has_run_out_of_memory(&self, pid: u32, _: u64) -> bool {
        let mut log = self.oom_log.lock().unwrap_or_else(PoisonError::into_inner);
        log.take(pid)
    }

    fn configure_network(&self, network: &GuestNetwork) -> Result<(), RequestError> {
        network::configure(network)
    }

    fn boot_phases(&self) -> Vec<BootPhase> {
        self.boot.clone()
    }

    fn shut_down(&self, grace: Duration) -> Result<(), RequestError> {
        let millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.shutdown.grace_millis.store(millis, Ordering::Release);
        // The main thread waits for signals.
        let _ = kill(Pid::this(), Signal::SIGTERM);
        Ok(())
    }
}

fn new_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .current_dir("/");
    if !is_init() {
        // No command outlives this agent.
        command.parent_death_signal(Signal::SIGKILL as i32);
    }
    command
}

/// Returns a command that runs this program again, for one file transfer.
fn transfer_command(option: &str, spec: &impl Serialize) -> Result<Command, RequestError> {
    let spec = serde_json::to_string(spec)
        .map_err(|error| RequestError::new(RequestErrorKind::Invalid, error.to_string()))?;
    let mut command = new_command(SELF);
    command.args([option, &spec]);
    Ok(command)
}
