use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use oci_spec::runtime::Process as OciProcess;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vmm_protocol::pod::PidNamespace;
use vmm_protocol::{PidRecord, with_causes};

use crate::args::Args;
use crate::bundle::{Bundle, ExitRecord};
use crate::config::Config;
use crate::container::Container;
use crate::error::ShimError;
use crate::events::EventQueue;
use crate::guest::Guest;
use crate::idle::UseCount;
use crate::logger::Loggers;
use crate::pod_share::{ContainerFiles, PodShare};
use crate::process::{Exit, Process};
use crate::recorded_process::has_ended;
use crate::reserved_ids::ReservedIds;
use crate::state_dir::StateDir;
use crate::stdio::StdioPaths;
use crate::{log, oci, port_forward, start, stats};

/// How long the last events of a pod are kept for a containerd that is away.
pub(crate) const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a server without a container runs. containerd creates one at once after `start`, unless it is killed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the output of a process that has ended may wait for its reader. The same as in containerd-shim-runc-v2.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the exits of processes may take to be reported after the guest has ended. Longer than a container waits for
/// its other processes, and a start for its logging program.
const EXITS_TIMEOUT: Duration = Duration::from_secs(15);

/// The containers of a pod, and the guest in which they run.
#[derive(Debug)]
pub(crate) struct Pod {
    /// The container for which the server was started.
    sandbox: String,
    share: PodShare,
    pub(crate) guest: Guest,
    pub(crate) events: Arc<EventQueue>,
    pub(crate) loggers: Loggers,
    /// The tasks that start and delete processes, and report their exits.
    pub(crate) tasks: TaskTracker,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    reserved_ids: ReservedIds,
    /// The containerd that has sent the last request.
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
        args: &Args,
    ) -> Result<Arc<Self>, ShimError> {
        let share = PodShare::of(&state);
        share.create()?;
        let events = Arc::new(EventQueue::open(state.events(), &args.namespace)?);
        let address = std::env::var(start::TTRPC_ADDRESS).unwrap_or_default();
        let queue = Arc::clone(&events);
        tokio::spawn(async move { queue.forward(&address).await });
        let bundle = bundle.clone();
        let of_spec = move || {
            let spec = bundle.spec()?;
            let network = oci::network_namespace(&spec);
            let loopback = network.as_deref().and_then(port_forward::listen);
            Ok((network, loopback, oci::oom_score(&spec)))
        };
        let (network, loopback, oom_score) = run_blocking(of_spec).await?;
        let pod = Arc::new(Self {
            sandbox: args.id.clone(),
            guest: Guest::open(config.guest, network, oom_score, &state).await?,
            share,
            events,
            loggers: Loggers::new(&args.namespace),
            tasks: TaskTracker::new(),
            containers: Mutex::default(),
            reserved_ids: ReservedIds::default(),
            containerd: Mutex::default(),
            use_count: UseCount::default(),
            shutdown: CancellationToken::new(),
        });
        if let Some(loopback) = loopback {
            tokio::spawn(port_forward::forward(Arc::clone(&pod), loopback));
        }
        Ok(pod)
    }

    /// Records the containerd with this pid, which knows the containers as tasks.
    pub(crate) fn note_containerd(&self, pid: u32) {
        let process = PidRecord::of(pid).ok().flatten();
        if process == *self.containerd() {
            return;
        }
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

    /// Returns whether other containers run in the guest, and the pod does not end with this one.
    pub(crate) fn shares_guest(&self, id: &str) -> bool {
        let containers = self.containers();
        let mut others = containers.values().filter(|other| other.id != id);
        id != self.sandbox && others.any(|other| other.check_runs().is_ok())
    }

    /// Creates a container, and boots the guest if it is the first one. Returns the pid.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the container is not created, and nothing of it is left. The guest boots all the same.
    pub(crate) async fn create(
        self: &Arc<Self>,
        request: CreateTaskRequest,
    ) -> Result<u32, ShimError> {
        let client = CancellationToken::new();
        let _client = client.clone().drop_guard();
        let pod = Arc::clone(self);
        let create = async move { pod.create_for(&client, request).await };
        let created = self.tasks.spawn(create).await;
        created.unwrap_or(Err(ShimError::ContainerState("could not be created")))
    }

    /// Creates a container, unless the client has gone.
    async fn create_for(
        &self,
        client: &CancellationToken,
        request: CreateTaskRequest,
    ) -> Result<u32, ShimError> {
        let id = &request.id;
        // Until the container is in the map, or nothing of it is left.
        let reserved = self.reserved_ids.reserve(id);
        if reserved.is_none() || self.containers().contains_key(id) {
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
        let in_use = self.use_count.begin().ok_or(ShimError::Closed)?;
        let prepared = self.prepare(&request, &bundle).await;
        let is_abandoned = containerd.as_ref().is_some_and(has_ended);
        let (namespace, pid) = match prepared {
            Ok(prepared) if !is_abandoned && !client.is_cancelled() => prepared,
            prepared => {
                log_error(self.remove_container(id).await);
                if is_abandoned {
                    // The next containerd does not know the container, and would leave it.
                    self.request_shutdown(false);
                }
                return Err(prepared.err().unwrap_or(ShimError::Abandoned));
            }
        };
        let container = Container::new(id, bundle, namespace, Process::new(stdio), in_use);
        self.containers().insert(id.clone(), Arc::new(container));
        self.events.publish_create(request, pid);
        Ok(pid)
    }

    /// Prepares what the guest needs for a container. Returns its PID namespace in the guest, and the pid.
    async fn prepare(
        &self,
        request: &CreateTaskRequest,
        bundle: &Bundle,
    ) -> Result<(PidNamespace, u32), ShimError> {
        let (bundle, rootfs) = (bundle.clone(), request.rootfs.clone());
        let (share, id) = (self.share.clone(), request.id.clone());
        let prepare = move || {
            let spec = bundle.spec()?;
            let (container, sources) = oci::container(&spec)?;
            let process = spec.process().as_ref();
            let process = process.ok_or_else(|| ShimError::Spec("it has no process".to_owned()))?;
            let process = oci::process(process)?;
            let root = bundle.root(&spec);
            let files = ContainerFiles {
                rootfs,
                root,
                sources,
            };
            share.add_container(&id, &container, &process, &files)?;
            Ok(oci::pid_namespace(&spec))
        };
        let namespace = run_blocking(prepare).await?;
        Ok((namespace, self.guest.pid().await?))
    }

    /// Adds a process to a container.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the process is not added.
    pub(crate) async fn add(
        &self,
        id: &str,
        exec_id: &str,
        process: OciProcess,
        stdio: StdioPaths,
    ) -> Result<(), ShimError> {
        let container = self.container(id)?;
        let spec = if process.capabilities().is_some() {
            oci::process(&process)?
        } else {
            let bundle = container.bundle.clone();
            run_blocking(move || oci::added_process(process, &bundle.spec()?)).await?
        };
        container.check_takes_processes()?;
        container.add(exec_id, Process::new(stdio))?;
        let written = self.share.add_process(id, exec_id, &spec);
        written.inspect_err(|_| container.remove(exec_id))?;
        self.events.publish_exec_added(id, exec_id);
        Ok(())
    }

    /// Removes a process that does not run. Returns how it ended, and the pid.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the process is removed all the same.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        id: &str,
        exec_id: &str,
    ) -> Result<(Exit, u32), ShimError> {
        let container = self.container(id)?;
        let (pod, exec_id) = (Arc::clone(self), exec_id.to_owned());
        let delete = async move { pod.delete_from(&container, &exec_id).await };
        let deleted = self.tasks.spawn(delete).await;
        deleted.unwrap_or(Err(ShimError::State("could not be deleted")))
    }

    async fn delete_from(
        &self,
        container: &Container,
        exec_id: &str,
    ) -> Result<(Exit, u32), ShimError> {
        let id = &container.id;
        let _operation = if exec_id.is_empty() {
            Some(container.operation_lock.lock().await)
        } else {
            None
        };
        let process = container.process(exec_id)?;
        let _delete = process.delete_lock.lock().await;
        // Another request can have deleted it meanwhile, and a further one have added a process with its ID.
        container.check_contains(exec_id, &process)?;
        let exit = process.begin_delete()?;
        let deadline = Instant::now() + OUTPUT_TIMEOUT;
        process.end_output(deadline).await;
        let pid = self.guest.pid().await.unwrap_or_default();
        if exec_id.is_empty() {
            for (_, added) in container.all() {
                if !Arc::ptr_eq(&added, &process) {
                    // A deletion of it that has begun removes its files, whose names another container can have.
                    let _delete = added.delete_lock.lock().await;
                    added.end_output(deadline).await;
                }
            }
            // Also of a process that was not started: no event reports its exit.
            log_error(container.bundle.set_exit(&ExitRecord {
                exit,
                pid,
                is_published: true,
            }));
            self.remove_container(id).await?;
            self.containers().remove(id);
            self.events.publish_delete(id, pid, exit);
        } else {
            self.share.remove_process(id, exec_id);
        }
        container.remove(exec_id);
        Ok((exit, pid))
    }

    /// Returns what a container uses: in the guest, or on the host for the sandbox, which stands for the guest.
    pub(crate) async fn metrics(&self, id: &str) -> Result<Any, ShimError> {
        let container = self.container(id)?;
        if oci::is_sandbox(&container.bundle.spec()?) {
            stats::of_host(&self.guest.usage().await?)
        } else {
            let used = self.command(&container, self.guest.stats(id)).await?;
            stats::of_guest(&used)
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
            () = self.shutdown.cancelled() => self.use_count.close(),
            () = self.use_count.close_when_idle(IDLE_TIMEOUT) => {}
        }
        self.guest.kill().await;
        self.tasks.close();
        if timeout(EXITS_TIMEOUT, self.tasks.wait()).await.is_err() {
            log("processes do not end with the guest: their exits are not reported");
        }
        self.end_output().await;
        self.loggers.end().await;
        self.events.wait_empty(LAST_EVENTS_TIMEOUT).await;
    }

    /// Waits until the output of all processes is copied, for a while.
    async fn end_output(&self) {
        let deadline = Instant::now() + OUTPUT_TIMEOUT;
        let containers: Vec<_> = self.containers().values().cloned().collect();
        for container in containers {
            for (_, process) in container.all() {
                process.end_output(deadline).await;
            }
        }
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

/// Runs what can take long, such as mounts, or needs much stack, such as reading an OCI spec, beside the server.
async fn run_blocking<T: Send + 'static>(
    action: impl FnOnce() -> Result<T, ShimError> + Send + 'static,
) -> Result<T, ShimError> {
    let result = tokio::task::spawn_blocking(action).await;
    result.map_err(|error| ShimError::system("finish a task")(io::Error::from(error)))?
}

pub(crate) fn log_error<T>(result: Result<T, ShimError>) {
    if let Err(error) = result {
        log(with_causes(&error));
    }
}
