use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Signal;
use crate::group::Group;
use crate::pipes::Pipes;
use crate::shim::Shim;
use crate::worker::Worker;

/// The pipes and the kill-on-drop option of a spawned shim; dropped with its last handle.
pub(crate) struct SpawnGuard {
    shim: Arc<Shim<OwnedFd>>,
    worker: Arc<Worker>,
    kill_on_drop: bool,
    pipes: Mutex<Pipes>,
}

impl SpawnGuard {
    /// Returns `None` if the child has no pipes and is not to be killed.
    pub(crate) fn new(
        shim: &Arc<Shim<OwnedFd>>,
        worker: &Arc<Worker>,
        pipes: Pipes,
        kill_on_drop: bool,
    ) -> Option<Arc<Self>> {
        (kill_on_drop || !pipes.is_empty()).then(|| {
            Arc::new(Self {
                shim: Arc::clone(shim),
                worker: Arc::clone(worker),
                kill_on_drop,
                pipes: Mutex::new(pipes),
            })
        })
    }

    pub(crate) fn pipes(&self) -> MutexGuard<'_, Pipes> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SpawnGuard {
    fn drop(&mut self) {
        if self.kill_on_drop && !self.worker.is_forked_copy() {
            let kernel = &self.worker.shared().kernel;
            // Fails if the shim, or every process in its group, has ended.
            match Group::of(kernel, &self.shim) {
                Some(group) => drop(group.signal(Signal::SIGKILL)),
                None => drop(self.shim.signal(kernel, Signal::SIGKILL)),
            }
        }
    }
}
