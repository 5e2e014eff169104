use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::runtime::Handle;

use crate::Signal;
use crate::group::Group;
use crate::handle::ShimHandle;
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

    fn pipes(&self) -> MutexGuard<'_, Pipes> {
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

impl ShimHandle {
    /// Takes the writing end of the shim's stdin. Returns `None` if stdin is not piped, or is
    /// already taken.
    ///
    /// Awaiting the handle does not close the pipe. If the shim reads stdin to the end, take the
    /// pipe and drop it.
    ///
    /// The caller's tokio runtime drives the pipe, or the reaper's if the caller is not in one.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.take(|pipes| pipes.stdin.take(), ChildStdin::from_std)
    }

    /// Takes the reading end of the shim's stdout. Returns `None` if stdout is not piped, or is
    /// already taken.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.take(|pipes| pipes.stdout.take(), ChildStdout::from_std)
    }

    /// Takes the reading end of the shim's stderr. Returns `None` if stderr is not piped, or is
    /// already taken.
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.take(|pipes| pipes.stderr.take(), ChildStderr::from_std)
    }

    fn take<S, T>(
        &self,
        take: impl FnOnce(&mut Pipes) -> Option<S>,
        convert: impl FnOnce(S) -> io::Result<T>,
    ) -> Option<T> {
        let pipe = take(&mut self.guard.as_ref()?.pipes())?;
        let runtime = Handle::try_current().or_else(|_| self.worker.runtime());
        match runtime.and_then(|runtime| {
            let _entered = runtime.enter();
            convert(pipe)
        }) {
            Ok(pipe) => Some(pipe),
            Err(error) => {
                tracing::warn!(pid = self.id(), %error, "cannot poll a pipe of the shim");
                None
            }
        }
    }
}
