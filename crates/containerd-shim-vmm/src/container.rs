use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::idle::InUse;
use crate::process::{Process, ProcessState};

/// A container of a pod.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) is_paused: AtomicBool,
    /// Keeps the server running.
    _in_use: InUse,
    /// By exec ID; that of the first process is empty.
    processes: Mutex<BTreeMap<String, Arc<Process>>>,
}

impl Container {
    /// Creates a container with its first process.
    pub(crate) fn new(id: &str, bundle: Bundle, init: Process, in_use: InUse) -> Self {
        Self {
            id: id.to_owned(),
            bundle,
            is_paused: AtomicBool::new(false),
            _in_use: in_use,
            processes: Mutex::new(BTreeMap::from([(String::new(), Arc::new(init))])),
        }
    }

    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, ShimError> {
        let process = self.processes().get(exec_id).cloned();
        process.ok_or_else(|| ShimError::not_found("process", exec_id))
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

    /// Returns the exec IDs of the processes that run.
    pub(crate) fn running(&self) -> Vec<String> {
        let processes = self.processes();
        let running = processes
            .iter()
            .filter(|(_, process)| process.state() == ProcessState::Running);
        running.map(|(id, _)| id.clone()).collect()
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
