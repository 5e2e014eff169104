use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_protocol::pod::PidNamespace;

use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::idle::InUse;
use crate::process::{Process, ProcessState};

/// A container of a pod.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) pid_namespace: PidNamespace,
    pub(crate) is_paused: AtomicBool,
    /// Held by the request that pauses, resumes or deletes the container.
    pub(crate) operation_lock: tokio::sync::Mutex<()>,
    /// Whether the first process has ended, and the others are being ended.
    is_ending: AtomicBool,
    /// Whether the first process has got SIGKILL from a client.
    is_killed: AtomicBool,
    /// Keeps the server running.
    _in_use: InUse,
    /// By exec ID; that of the first process is empty.
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
}

impl Container {
    /// Creates a container with its first process.
    pub(crate) fn new(
        id: &str,
        bundle: Bundle,
        pid_namespace: PidNamespace,
        init: Process,
        in_use: InUse,
    ) -> Self {
        Self {
            id: id.to_owned(),
            bundle,
            pid_namespace,
            is_paused: AtomicBool::new(false),
            operation_lock: tokio::sync::Mutex::default(),
            is_ending: AtomicBool::new(false),
            is_killed: AtomicBool::new(false),
            _in_use: in_use,
            processes: Mutex::new(BTreeMap::from([(String::new(), Arc::new(init))])),
        }
    }

    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, ShimError> {
        let process = self.processes().get(exec_id).cloned();
        process.ok_or_else(|| ShimError::not_found("process", exec_id))
    }

    /// Fails unless this process is in the container under this exec ID.
    pub(crate) fn check_contains(
        &self,
        exec_id: &str,
        process: &Arc<Process>,
    ) -> Result<(), ShimError> {
        let found = self.process(exec_id)?;
        if Arc::ptr_eq(&found, process) {
            Ok(())
        } else {
            Err(ShimError::not_found("process", exec_id))
        }
    }

    pub(crate) fn add(&self, exec_id: &str, process: Process) -> Result<(), ShimError> {
        let mut processes = self.processes();
        if processes.contains_key(exec_id) {
            let (what, id) = ("process", exec_id.to_owned());
            return Err(ShimError::Exists { what, id });
        }
        processes.insert(exec_id.to_owned(), Arc::new(process));
        Ok(())
    }

    pub(crate) fn remove(&self, exec_id: &str) {
        self.processes().remove(exec_id);
    }

    /// Returns all processes, by exec ID.
    pub(crate) fn all(&self) -> Vec<(String, Arc<Process>)> {
        let processes = self.processes();
        let all = processes.iter();
        all.map(|(id, process)| (id.clone(), Arc::clone(process)))
            .collect()
    }

    /// Fails unless the first process runs, so that commands can be carried out in the container.
    pub(crate) fn check_runs(&self) -> Result<(), ShimError> {
        match self.process("")?.state() {
            ProcessState::Running if !self.is_ending.load(Ordering::Acquire) => Ok(()),
            ProcessState::Running | ProcessState::Exited(_) => {
                Err(ShimError::ContainerState("has ended"))
            }
            _ => Err(ShimError::ContainerState("has not been started")),
        }
    }

    /// Fails if no process can be added: the container has ended, or is paused.
    pub(crate) fn check_takes_processes(&self) -> Result<(), ShimError> {
        if self.is_paused.load(Ordering::Acquire) {
            return Err(ShimError::ContainerState("is paused; resume it first"));
        }
        match self.process("")?.state() {
            ProcessState::Exited(_) => Err(ShimError::ContainerState("has ended")),
            _ => Ok(()),
        }
    }

    /// Lets no further process start, after the first one has ended. Returns those that have been started.
    pub(crate) fn begin_end(&self) -> Vec<(String, Arc<Process>)> {
        self.is_ending.store(true, Ordering::Release);
        let mut others = self.all();
        others.retain(|(exec_id, process)| {
            let state = process.state();
            !exec_id.is_empty()
                && matches!(state, ProcessState::Starting(_) | ProcessState::Running)
        });
        others
    }

    /// Marks the container as killed by a client. Returns false if it has been already.
    pub(crate) fn begin_kill(&self) -> bool {
        !self.is_killed.swap(true, Ordering::AcqRel)
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
