use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock};
use std::thread;

use pidfd_spawn::{Command, SpawnError};
use vmm_agent::{Backend, Children, Server};
use vmm_protocol::frames::{ExecSpec, RequestError, RequestErrorKind, Strictness};
use vmm_protocol::{ControlGroup, Ending, FileError, InstanceSpec, with_causes};

use super::command;
use super::limits::Limits;
use super::oom_kills::OomKills;
use crate::pause::PauseObserver;
use crate::{ControlChannel, Pause};

/// The commands that clients run beside a payload. The first client starts their thread.
#[derive(Debug)]
pub(super) struct Executions {
    backend: Arc<BoxBackend>,
    children: OnceLock<Arc<Children>>,
    pause_observer: PauseObserver,
}

/// Starts commands with the environment and the limits of the payload.
#[derive(Debug)]
struct BoxBackend {
    spec: InstanceSpec,
    dir: PathBuf,
    limits: Limits,
    oom_kills: OomKills,
}

impl Executions {
    pub(super) fn new(spec: InstanceSpec, dir: PathBuf, limits: Limits) -> Self {
        Self {
            backend: Arc::new(BoxBackend {
                spec,
                dir,
                limits,
                oom_kills: OomKills::default(),
            }),
            children: OnceLock::new(),
            pause_observer: PauseObserver::default(),
        }
    }

    /// Stores the exit status of a child that the shim has reaped, if it is an execution.
    pub(super) fn report(&self, pid: u32, status: ExitStatus) {
        if let Some(children) = self.children.get() {
            children.report(pid, status);
        }
    }

    pub(super) fn oom_kills(&self) -> &OomKills {
        &self.backend.oom_kills
    }

    /// Ends the thread, after all output has been sent.
    pub(super) fn close(&self) {
        if let Some(children) = self.children.get() {
            children.close();
        }
    }

    /// Lets the payload and all executions continue, if they are paused.
    pub(super) fn thaw(&self) {
        if let Some(children) = self.children.get() {
            children.resume(|| {
                if let Some(group) = ControlGroup::of_this_process() {
                    group.thaw();
                }
                self.pause_observer.notify(false);
            });
        }
    }

    /// Returns the set of children, and creates it for the first client.
    fn children(&self) -> io::Result<&Arc<Children>> {
        if let Some(children) = self.children.get() {
            return Ok(children);
        }
        let children = Arc::new(Children::new()?);
        Ok(self.children.get_or_init(|| children))
    }

    fn start_server(&self) -> io::Result<OwnedFd> {
        let (host, payload) = UnixStream::pair()?;
        let children = Arc::clone(self.children()?);
        let mut server = Server::new(Arc::clone(&self.backend), children);
        // Executions die with the thread that has started them, which ends with the shim.
        let builder = thread::Builder::new().name("shim-exec".to_owned());
        builder.spawn(move || {
            let _ = server.serve(payload.into(), Strictness::Strict);
        })?;
        Ok(host.into())
    }
}

impl ControlChannel for Executions {
    /// Starts the thread, and returns the other end of its connection.
    fn open(&self) -> Result<OwnedFd, RequestError> {
        self.start_server().map_err(|error| {
            let message = format!("cannot start the thread for executions: {error}");
            RequestError::new(RequestErrorKind::Failed, message)
        })
    }
}

impl Pause for Executions {
    fn pause(&self) -> Result<(), RequestError> {
        let children = self.children().map_err(|error| {
            let message = format!("cannot pause the payload: {error}");
            RequestError::new(RequestErrorKind::Failed, message)
        })?;
        let freeze = || {
            ControlGroup::freeze_payload(&self.backend.dir)?;
            self.pause_observer.notify(true);
            Ok::<_, FileError>(())
        };
        children.pause(freeze).map_err(|error| {
            let kind = match error.source.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::QuotaExceeded => RequestErrorKind::Failed,
                _ => RequestErrorKind::Unsupported,
            };
            let message = format!(
                "the payload cannot be paused, which needs control groups of version 2 (Linux 5.2): \
                 {}",
                with_causes(&error)
            );
            RequestError::new(kind, message)
        })
    }

    fn observe(&self, observer: Box<dyn Fn(bool) + Send + Sync>) {
        self.pause_observer.set(observer);
    }

    fn resume(&self) -> Result<(), RequestError> {
        self.thaw();
        Ok(())
    }
}

impl Backend for BoxBackend {
    fn command(&self, exec: &ExecSpec) -> Result<Command, Ending> {
        command::execution_command(&self.spec, &self.dir, &self.limits, exec).map_err(Ending::from)
    }

    fn spawn_error(&self, exec: &ExecSpec, error: SpawnError) -> Ending {
        let program = exec.command.first().map(PathBuf::from).unwrap_or_default();
        command::start_error(&self.spec.payload, program, error).into()
    }

    fn oom_kills(&self) -> u64 {
        OomKills::count()
    }

    fn has_run_out_of_memory(&self, _pid: u32, kills_before: u64) -> bool {
        self.oom_kills.attribute_to_execution(kills_before)
    }
}
