use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use vmm_protocol::Ending;
use vmm_protocol::frames::TerminalSize;
use vmm_runtime::Execution;

use crate::error::ShimError;
use crate::stdio::{StdioPaths, Streams};

/// The exit code of a process whose guest ended first: that of SIGKILL, which is what happened to it.
const KILLED: u32 = 128 + 9;

/// How long a killed process may wait for a client that reads its output.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(5);

/// A process of a container: its first one, or one that was added.
///
/// ```text
/// Created ── start ──► Running ── exit ──► Exited
///    └────────────── kill ───────────────────▲
/// ```
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) stdio: StdioPaths,
    state: watch::Sender<ProcessState>,
    running: Mutex<Option<Running>>,
    /// Whether the client has closed the stdin, which it can do while the process starts.
    is_stdin_closed: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessState {
    Created,
    Running,
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// The exit code, or 128 plus the signal.
    pub(crate) code: u32,
    pub(crate) at: Timestamp,
}

#[derive(Debug)]
struct Running {
    execution: Arc<Execution>,
    streams: Streams,
}

impl Exit {
    /// Returns the exit of a process that has just ended. Without an ending of its own, its guest ended first.
    pub(crate) fn now(ending: Option<&Ending>) -> Self {
        let mut exit = Self::killed();
        if let Some(ending @ (Ending::Exited { .. } | Ending::Signaled { .. })) = ending {
            exit.code = ending.shell_code().cast_unsigned();
        }
        exit
    }

    /// A process that was killed, now.
    pub(crate) fn killed() -> Self {
        Self {
            code: KILLED,
            at: Timestamp::now(),
        }
    }
}

impl Process {
    pub(crate) fn new(stdio: StdioPaths) -> Self {
        Self {
            stdio,
            state: watch::Sender::new(ProcessState::Created),
            running: Mutex::new(None),
            is_stdin_closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn state(&self) -> ProcessState {
        *self.state.borrow()
    }

    /// Marks the process as running. Returns its execution.
    pub(crate) fn mark_running(&self, execution: Execution, streams: Streams) -> Arc<Execution> {
        let execution = Arc::new(execution);
        *self.running() = Some(Running {
            execution: Arc::clone(&execution),
            streams,
        });
        if self.is_stdin_closed.load(Ordering::Acquire) {
            self.close_stdin();
        }
        self.state.send_replace(ProcessState::Running);
        execution
    }

    /// Marks the process as ended. Returns false if it has been already.
    pub(crate) fn mark_exited(&self, exit: Exit) -> bool {
        *self.running() = None;
        self.state.send_if_modified(|state| match state {
            ProcessState::Exited(_) => false,
            _ => {
                *state = ProcessState::Exited(exit);
                true
            }
        })
    }

    /// Waits until the process has ended.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub(crate) async fn wait(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let ProcessState::Exited(exit) = *state.borrow_and_update() {
                return exit;
            }
            if state.changed().await.is_err() {
                return Exit::killed();
            }
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<(), ShimError> {
        let running = self.running();
        let running = running.as_ref().ok_or(ShimError::Finished)?;
        running
            .execution
            .signal(signal)
            .map_err(|_| ShimError::Finished)
    }

    /// Discards the output of a process that was killed and does not end.
    pub(crate) async fn end_output(&self) {
        if timeout(OUTPUT_TIMEOUT, self.wait()).await.is_err()
            && let Some(running) = self.running().as_ref()
        {
            running.streams.discard_output();
        }
    }

    pub(crate) fn resize(&self, size: TerminalSize) -> Result<(), ShimError> {
        let running = self.running();
        let running = running.as_ref().ok_or(ShimError::State("does not run"))?;
        running
            .execution
            .resize(size)
            .map_err(|_| ShimError::Finished)
    }

    /// Lets the stdin end when its last client has closed it.
    pub(crate) fn close_stdin(&self) {
        self.is_stdin_closed.store(true, Ordering::Release);
        if let Some(running) = self.running().as_mut() {
            running.streams.close_stdin();
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vmm_protocol::{FailureKind, GuestEvent};

    use super::*;

    #[test]
    fn a_process_whose_guest_ended_first_was_killed() {
        let failed = Ending::failed(FailureKind::Engine, String::new());
        let off = Ending::Guest {
            event: GuestEvent::PoweredOff,
        };
        for ending in [None, Some(&failed), Some(&off), Some(&Ending::OutOfMemory)] {
            assert_eq!(Exit::now(ending).code, KILLED, "{ending:?}");
        }
        assert_eq!(Exit::now(Some(&Ending::Exited { code: 42 })).code, 42);
        assert_eq!(Exit::now(Some(&Ending::Signaled { signal: 15 })).code, 143);
    }
}
