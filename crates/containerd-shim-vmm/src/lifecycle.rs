//! Starts, pauses, signals and ends the processes of a pod.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use vmm_protocol::Ending;
use vmm_runtime::Execution;

use crate::bundle::ExitRecord;
use crate::container::Container;
use crate::error::ShimError;
use crate::log;
use crate::pod::{Pod, log_error};
use crate::process::{Exit, Process};
use crate::signal::{SIGKILL, SignalEffect, SignalRequest};
use crate::stdio::{StdioPaths, Streams};

/// How long the other processes of a container may take to die of SIGKILL after its first process has ended.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a container may take to end after SIGKILL, before its guest is killed: the guest or a helper process hangs.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The same while other containers run in the guest. Shorter than the two minutes for which the CRI plugin waits.
const SHARED_KILL_TIMEOUT: Duration = Duration::from_secs(30);

impl Pod {
    /// Starts a process: the first one of the container if `exec_id` is empty. Returns the pid.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the process starts all the same.
    pub(crate) async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, ShimError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        process.begin_start()?;
        let pod = Arc::clone(self);
        let exec_id = exec_id.to_owned();
        let start = async move { pod.run(&container, exec_id, process).await };
        let started = self.tasks.spawn(start).await;
        started.unwrap_or(Err(ShimError::State("could not be started")))
    }

    /// Runs a process that is being started, and reports its exit later. Returns the pid.
    async fn run(
        self: Arc<Self>,
        container: &Arc<Container>,
        exec_id: String,
        process: Arc<Process>,
    ) -> Result<u32, ShimError> {
        let (pid, execution, streams) = match self.execute(container, &exec_id, &process).await {
            Ok(started) => started,
            Err(error) => {
                for request in process.cancel_start() {
                    log_error(self.signal(container, &exec_id, &process, request).await);
                }
                return Err(error);
            }
        };
        let (execution, signals) = process.mark_running(execution, streams);
        let Some(signals) = signals else {
            // Its container has ended, and its exit is the last event about it.
            let _ = execution.signal_command(SIGKILL);
            return Err(ShimError::Finished);
        };
        self.events.publish_start(&container.id, &exec_id, pid);
        self.tasks.spawn({
            let (pod, container) = (Arc::clone(&self), Arc::clone(container));
            let (process, exec_id) = (Arc::clone(&process), exec_id.clone());
            async move {
                let ending = execution.wait().await.ok();
                pod.finish(&container, &exec_id, &process, ending).await;
            }
        });
        for request in signals {
            log_error(self.signal(container, &exec_id, &process, request).await);
        }
        Ok(pid)
    }

    /// Executes a process in the guest, and connects its streams.
    async fn execute(
        &self,
        container: &Container,
        exec_id: &str,
        process: &Process,
    ) -> Result<(u32, Execution, Streams), ShimError> {
        if !exec_id.is_empty() {
            container.check_takes_processes()?;
            container.check_runs()?;
        }
        let pid = self.guest.pid().await?;
        let stdio = process.stdio.open(&self.loggers, &container.id).await?;
        let StdioPaths {
            terminal, stdin, ..
        } = &process.stdio;
        let mut execution = self
            .guest
            .start(container, exec_id, *terminal, !stdin.is_empty())
            .await?;
        let streams = stdio.connect(&mut execution);
        Ok((pid, execution, streams))
    }

    /// Runs a command of the agent for a container whose first process runs, unless that ends first.
    pub(crate) async fn command<T>(
        &self,
        container: &Container,
        command: impl Future<Output = Result<T, ShimError>>,
    ) -> Result<T, ShimError> {
        container.check_runs()?;
        let init = container.process("")?;
        tokio::select! {
            biased;
            result = command => result,
            _ = init.wait() => Err(ShimError::Finished),
        }
    }

    /// Freezes all processes of a container, or lets them continue.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the container is paused or resumed all the same.
    pub(crate) async fn set_paused(
        self: &Arc<Self>,
        id: &str,
        is_paused: bool,
    ) -> Result<(), ShimError> {
        let container = self.container(id)?;
        let pod = Arc::clone(self);
        let change = async move { pod.change_paused(&container, is_paused).await };
        let changed = self.tasks.spawn(change).await;
        changed.unwrap_or(Err(ShimError::ContainerState(
            "could not be paused or resumed",
        )))
    }

    async fn change_paused(&self, container: &Container, is_paused: bool) -> Result<(), ShimError> {
        let _operation = container.operation_lock.lock().await;
        if container.is_paused.load(Ordering::Acquire) == is_paused {
            let state = if is_paused {
                "is paused already"
            } else {
                "is not paused"
            };
            return Err(ShimError::ContainerState(state));
        }
        let action = if is_paused { "freeze" } else { "thaw" };
        let id = &container.id;
        self.command(container, self.guest.command(action, id, None))
            .await?;
        container.is_paused.store(is_paused, Ordering::Release);
        self.events.publish_paused(id, is_paused);
        Ok(())
    }

    /// Sends a signal to a process, or to all of a container. SIGKILL for the first process of a container also ends a
    /// guest in which that process does not end.
    pub(crate) async fn kill(
        self: &Arc<Self>,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), ShimError> {
        let request = SignalRequest::new(signal, all)?;
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        self.signal(&container, exec_id, &process, request).await
    }

    async fn signal(
        self: &Arc<Self>,
        container: &Container,
        exec_id: &str,
        process: &Arc<Process>,
        request: SignalRequest,
    ) -> Result<(), ShimError> {
        let effect = process.take_signal(request)?;
        if let SignalEffect::Ended(exit) = effect {
            let pid = self.guest.pid().await.unwrap_or_default();
            self.publish_exit(container, exec_id, exit, pid);
            return Ok(());
        }
        let must_end = request.signal == SIGKILL && exec_id.is_empty();
        if must_end {
            self.ensure_end(container, process);
        }
        let sent = match effect {
            SignalEffect::Send if request.all => {
                let signal = request.signal.to_string();
                let command = self.guest.command("signal", &container.id, Some(&signal));
                self.command(container, command).await.map(drop)
            }
            SignalEffect::Send => process.signal(request.signal),
            _ => Ok(()),
        };
        match sent {
            // The container ends with its guest.
            Err(error) if must_end => {
                log_error::<()>(Err(error));
                Ok(())
            }
            sent => sent,
        }
    }

    /// Kills the guest if the first process of a container, which gets SIGKILL, does not end in time.
    fn ensure_end(self: &Arc<Self>, container: &Container, process: &Arc<Process>) {
        if !container.begin_kill() {
            return;
        }
        let limit = if self.shares_guest(&container.id) {
            SHARED_KILL_TIMEOUT
        } else {
            KILL_TIMEOUT
        };
        let (pod, process, id) = (Arc::clone(self), Arc::clone(process), container.id.clone());
        self.tasks.spawn(async move {
            if timeout(limit, process.wait()).await.is_err() {
                log(format_args!(
                    "the container {id} does not end within {limit:?} of SIGKILL: the guest is killed"
                ));
                pod.guest.kill().await;
            }
        });
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
            // The other processes of the container end with its first one, and before it for containerd.
            let others = container.begin_end();
            if ending.is_some() {
                self.remove(&container.id).await;
            }
            self.end_others(container, others, pid).await;
        }
        self.exit(container, exec_id, process, exit, pid);
    }

    /// Ends all processes of a container, and removes it from the guest.
    async fn remove(&self, id: &str) {
        match self.guest.remove(id).await {
            Ok((used, removed)) => {
                if used.oom_kills > 0 {
                    self.events.publish_out_of_memory(id);
                }
                log_error(removed);
            }
            Err(error) => log_error::<()>(Err(error)),
        }
    }

    /// Waits until processes have ended after the first one of their container, and their exits are reported.
    async fn end_others(
        &self,
        container: &Container,
        others: Vec<(String, Arc<Process>)>,
        pid: u32,
    ) {
        for (_, process) in &others {
            // One that does not yet belong to the control group of the container.
            if let Ok(SignalEffect::Send) = process.take_signal(SignalRequest::KILL) {
                let _ = process.signal(SignalRequest::KILL.signal);
            }
        }
        let deadline = Instant::now() + OTHERS_TIMEOUT;
        for (exec_id, process) in others {
            if timeout_at(deadline, process.wait()).await.is_err() {
                self.exit(container, &exec_id, &process, Exit::killed(), pid);
            }
        }
    }

    /// Marks a process as ended, and reports its exit, unless it has been reported.
    fn exit(&self, container: &Container, exec_id: &str, process: &Process, exit: Exit, pid: u32) {
        // Other tasks see the new state when the event is published.
        if process.mark_exited(exit) {
            self.publish_exit(container, exec_id, exit, pid);
        }
    }

    /// Reports the exit of a process. For `delete`, that of a first process is recorded before the event is added:
    /// if this program is killed between the two, `delete` adds the event.
    fn publish_exit(&self, container: &Container, exec_id: &str, exit: Exit, pid: u32) {
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
}
