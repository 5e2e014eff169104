use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use oci_spec::runtime::Process as OciProcess;
use tokio_util::sync::CancellationToken;
use vmm_protocol::{Ending, PidLookup, PidRecord, with_causes};

use crate::bundle::{Bundle, ExitRecord};
use crate::config::Config;
use crate::container::Container;
use crate::error::ShimError;
use crate::events::EventQueue;
use crate::guest::Guest;
use crate::idle::UseCount;
use crate::logger::Loggers;
use crate::pod_share::{ContainerFiles, PodShare};
use crate::process::{Exit, Process, ProcessState};
use crate::state_dir::StateDir;
use crate::stdio::StdioPaths;
use crate::{oci, start, stats};

/// How long the last events of a pod are kept for a containerd that is away.
pub(crate) const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a server without a container runs. containerd creates one at once after `start`, unless it is killed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

const SIGKILL: u32 = 9;

/// The containers of a pod, and the guest in which they run.
#[derive(Debug)]
pub(crate) struct Pod {
    share: PodShare,
    guest: Guest,
    events: Arc<EventQueue>,
    loggers: Loggers,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    /// The containerd that has connected last.
    containerd: Mutex<Option<PidRecord>>,
    use_count: UseCount,
    shutdown: CancellationToken,
}

impl Pod {
    /// Opens the pod whose first container has this bundle.
    pub(crate) async fn open(
        config: Config,
        state: StateDir,
        bundle: &Bundle,
        namespace: &str,
    ) -> Result<Arc<Self>, ShimError> {
        let share = PodShare::of(&state);
        share.create()?;
        let events = Arc::new(EventQueue::open(state.events(), namespace)?);
        let address = std::env::var(start::TTRPC_ADDRESS).unwrap_or_default();
        let queue = Arc::clone(&events);
        tokio::spawn(async move { queue.forward(&address).await });
        let network = oci::network_namespace(&bundle.spec()?);
        Ok(Arc::new(Self {
            guest: Guest::open(config.guest, network, &state).await?,
            share,
            events,
            loggers: Loggers::new(namespace),
            containers: Mutex::default(),
            containerd: Mutex::default(),
            use_count: UseCount::default(),
            shutdown: CancellationToken::new(),
        }))
    }

    /// Records that the containerd with this pid has connected. It knows the containers as tasks.
    pub(crate) fn note_containerd(&self, pid: u32) {
        let process = PidRecord::of(pid).ok().flatten();
        for container in self.containers().values() {
            if let Some(process) = &process {
                log_error(container.bundle.set_containerd(process));
            }
        }
        *self.containerd() = process;
    }

    /// Returns the pid of the virtual machine, which stands for every process in it.
    pub(crate) async fn pid(&self) -> Result<u32, ShimError> {
        self.guest.pid().await
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, ShimError> {
        let container = self.containers().get(id).cloned();
        container.ok_or_else(|| ShimError::not_found("container", id))
    }

    /// Creates a container, and boots the guest if it is the first one. Returns the pid.
    pub(crate) async fn create(&self, request: CreateTaskRequest) -> Result<u32, ShimError> {
        let id = &request.id;
        if self.containers().contains_key(id) {
            let (what, id) = ("container", id.clone());
            return Err(ShimError::Exists { what, id });
        }
        let stdio = StdioPaths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let bundle = Bundle::new(&request.bundle);
        let containerd = self.containerd().clone();
        if let Some(process) = &containerd {
            log_error(bundle.set_containerd(process));
        }
        let in_use = self.use_count.begin();
        let prepared = self.prepare(&request, &bundle).await;
        let is_wanted = containerd.as_ref().is_none_or(is_alive);
        let pid = match prepared {
            Ok(pid) if is_wanted => pid,
            prepared => {
                log_error(self.remove_container(id).await);
                if !is_wanted {
                    // The next containerd does not know the container, and would leave it.
                    self.request_shutdown(false);
                }
                return Err(prepared.err().unwrap_or(ShimError::Abandoned));
            }
        };
        let container = Container::new(id, bundle, Process::new(stdio), in_use);
        self.containers().insert(id.clone(), Arc::new(container));
        self.events.publish_create(request, pid);
        Ok(pid)
    }

    /// Prepares what the guest needs for a container.
    async fn prepare(
        &self,
        request: &CreateTaskRequest,
        bundle: &Bundle,
    ) -> Result<u32, ShimError> {
        let spec = bundle.spec()?;
        let (container, sources) = oci::container(&spec);
        let process = spec.process().as_ref();
        let process = process.ok_or_else(|| ShimError::Spec("it has no process".to_owned()))?;
        let process = oci::process(process)?;
        let files = ContainerFiles {
            rootfs: request.rootfs.clone(),
            root: bundle.root(&spec),
            sources,
        };
        let (share, id) = (self.share.clone(), request.id.clone());
        run_blocking(move || share.add_container(&id, &container, &process, &files)).await?;
        self.guest.pid().await
    }

    /// Adds a process to a container.
    pub(crate) fn add(
        &self,
        id: &str,
        exec_id: &str,
        process: &OciProcess,
        stdio: StdioPaths,
    ) -> Result<(), ShimError> {
        let container = self.container(id)?;
        container.add(exec_id, Process::new(stdio))?;
        let spec = oci::process(process);
        let written = spec.and_then(|spec| self.share.add_process(id, exec_id, &spec));
        written.inspect_err(|_| container.remove(exec_id))?;
        self.events.publish_exec_added(id, exec_id);
        Ok(())
    }

    /// Starts a process: the first one of the container if `exec_id` is empty. Returns the pid.
    pub(crate) async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, ShimError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        if process.state() != ProcessState::Created {
            return Err(ShimError::State("was started already"));
        }
        let pid = self.guest.pid().await?;
        let stdio = process.stdio.open(&self.loggers, id).await?;
        let StdioPaths {
            terminal, stdin, ..
        } = &process.stdio;
        let mut execution = self
            .guest
            .start(id, exec_id, *terminal, !stdin.is_empty())
            .await?;
        let streams = stdio.connect(&mut execution);
        let execution = process.mark_running(execution, streams);
        self.events.publish_start(id, exec_id, pid);
        let pod = Arc::clone(self);
        let exec_id = exec_id.to_owned();
        tokio::spawn(async move {
            let ending = execution.wait().await.ok();
            pod.finish(&container, &exec_id, &process, ending).await;
        });
        Ok(pid)
    }

    /// Reports the end of a process once. `None` is the end of its guest.
    async fn finish(
        &self,
        container: &Container,
        exec_id: &str,
        process: &Process,
        ending: Option<Ending>,
    ) {
        let exit = Exit::now(ending.as_ref());
        let pid = self.guest.pid().await.unwrap_or_default();
        if exec_id.is_empty() {
            // The other processes of the container end with its first one.
            if ending.is_some() {
                match self.guest.remove(&container.id).await {
                    Ok(stats) if stats.oom_kills > 0 => {
                        self.events.publish_out_of_memory(&container.id);
                    }
                    result => log_error(result),
                }
            }
        }
        self.publish_exit(container, exec_id, process, exit, pid);
    }

    /// Sends a signal to a process, or to all of a container.
    pub(crate) async fn kill(
        self: &Arc<Self>,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), ShimError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        match process.state() {
            ProcessState::Created => {
                self.finish(&container, exec_id, &process, None).await;
                return Ok(());
            }
            // The other processes of the container have ended with its first one.
            ProcessState::Exited(_) => return Err(ShimError::Finished),
            _ => {}
        }
        if all {
            let signal = signal.to_string();
            let sent = self.guest.command("signal", id, Some(&signal)).await;
            return sent.map(drop);
        }
        process.signal(signal.cast_signed())?;
        if signal == SIGKILL {
            tokio::spawn(async move { process.end_output().await });
        }
        Ok(())
    }

    /// Removes a process that does not run. Returns how it ended, and the pid.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<(Exit, u32), ShimError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        let exit = match process.state() {
            ProcessState::Running => return Err(ShimError::State("still runs")),
            ProcessState::Created => Exit {
                code: 0,
                ..Exit::killed()
            },
            ProcessState::Exited(exit) => exit,
        };
        let pid = self.guest.pid().await.unwrap_or_default();
        if exec_id.is_empty() {
            // Also of a process that was not started: no event reports its exit.
            log_error(container.bundle.set_exit(&ExitRecord {
                exit,
                pid,
                is_published: true,
            }));
            self.remove_container(id).await?;
            self.containers().remove(id);
        }
        self.share.remove_process(id, exec_id);
        container.remove(exec_id);
        self.events.publish_delete(id, exec_id, pid, exit);
        Ok((exit, pid))
    }

    /// Freezes all processes of a container, or lets them continue.
    pub(crate) async fn set_paused(&self, id: &str, is_paused: bool) -> Result<(), ShimError> {
        let container = self.container(id)?;
        let action = if is_paused { "freeze" } else { "thaw" };
        self.guest.command(action, id, None).await?;
        container.is_paused.store(is_paused, Ordering::Release);
        self.events.publish_paused(id, is_paused);
        Ok(())
    }

    /// Returns what a container uses: in the guest, or on the host for the sandbox, which stands for the guest.
    pub(crate) async fn metrics(&self, id: &str) -> Result<Any, ShimError> {
        let container = self.container(id)?;
        if oci::is_sandbox(&container.bundle.spec()?) {
            stats::of_host(&self.guest.usage().await?)
        } else {
            stats::of_guest(&self.guest.stats(id).await?)
        }
    }

    /// Requests the end of the pod, if no container is left, or by force.
    pub(crate) fn request_shutdown(&self, now: bool) {
        if now || self.containers().is_empty() {
            self.shutdown.cancel();
        }
    }

    /// Waits for a requested shutdown, or until no container has existed for a while, and ends the guest. Returns
    /// when containerd has the last event.
    pub(crate) async fn shut_down(&self) {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = self.use_count.wait_idle(IDLE_TIMEOUT) => {}
        }
        self.guest.kill().await;
        self.loggers.end().await;
        self.events.wait_empty(LAST_EVENTS_TIMEOUT).await;
    }

    /// Reports the exit of a process, unless it has been reported. For `delete`, that of a first process is
    /// recorded before the event is added: if this program is killed between the two, `delete` adds the event.
    fn publish_exit(
        &self,
        container: &Container,
        exec_id: &str,
        process: &Process,
        exit: Exit,
        pid: u32,
    ) {
        if !process.mark_exited(exit) {
            return;
        }
        let id = &container.id;
        let record = |is_published| {
            let record = ExitRecord {
                exit,
                pid,
                is_published,
            };
            if exec_id.is_empty() {
                log_error(container.bundle.set_exit(&record));
            }
        };
        record(false);
        self.events.publish_exit(id, exec_id, pid, exit);
        record(true);
    }

    async fn remove_container(&self, id: &str) -> Result<(), ShimError> {
        let (share, id) = (self.share.clone(), id.to_owned());
        run_blocking(move || share.remove_container(&id)).await
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn containerd(&self) -> MutexGuard<'_, Option<PidRecord>> {
        self.containerd
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a process still runs, as far as is known.
fn is_alive(process: &PidRecord) -> bool {
    process
        .lookup()
        .is_ok_and(|found| matches!(found, PidLookup::Alive(_)))
}

/// Runs system calls that can take long, such as mounts, beside the server.
async fn run_blocking<T: Send + 'static>(
    action: impl FnOnce() -> Result<T, ShimError> + Send + 'static,
) -> Result<T, ShimError> {
    let result = tokio::task::spawn_blocking(action).await;
    result
        .map_err(|error| ShimError::file("run a thread of", "/proc/self")(io::Error::from(error)))?
}

fn log_error<T>(result: Result<T, ShimError>) {
    if let Err(error) = result {
        let _ = writeln!(io::stderr(), "{}", with_causes(&error));
    }
}
