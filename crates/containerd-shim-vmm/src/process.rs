use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use vmm_protocol::Ending;
use vmm_protocol::frames::TerminalSize;
use vmm_runtime::Execution;

use crate::error::ShimError;
use crate::signal::{SignalEffect, SignalRequest};
use crate::stdio::{StdioPaths, Streams};

/// The exit code of a process whose guest ended first: that of SIGKILL, which is what happened to it.
const KILLED: u32 = 128 + 9;

/// A process of a container: its first one, or one that was added.
///
/// ```text
///    ┌── not started ──┐
///    ▼                 │
/// Created ── start ──► Starting ──► Running ── exit ──► Exited
///    └─────────────── signal, delete ─────────────────────▲
/// ```
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) stdio: StdioPaths,
    /// Held by the request that deletes the process.
    pub(crate) delete_lock: tokio::sync::Mutex<()>,
    state: watch::Sender<ProcessState>,
    running: Mutex<Option<Running>>,
    /// Whether the client has closed the stdin, which it can do while the process starts.
    is_stdin_closed: AtomicBool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProcessState {
    Created,
    /// With the signals that the process gets when it runs.
    Starting(Vec<SignalRequest>),
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
        Self::with_code(KILLED)
    }

    fn with_code(code: u32) -> Self {
        let at = Timestamp::now();
        Self { code, at }
    }
}

impl Process {
    pub(crate) fn new(stdio: StdioPaths) -> Self {
        Self {
            stdio,
            delete_lock: tokio::sync::Mutex::default(),
            state: watch::Sender::new(ProcessState::Created),
            running: Mutex::new(None),
            is_stdin_closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn state(&self) -> ProcessState {
        self.state.borrow().clone()
    }

    /// Marks the process as being started. Fails unless it is created.
    pub(crate) fn begin_start(&self) -> Result<(), ShimError> {
        let is_created = self.change(|state| match state {
            ProcessState::Created => Some(ProcessState::Starting(Vec::new())),
            _ => None,
        });
        is_created
            .map(drop)
            .ok_or(ShimError::State("was started already"))
    }

    /// Marks the process as created again, because it could not be started. Returns the signals that it should have got.
    pub(crate) fn cancel_start(&self) -> Vec<SignalRequest> {
        self.end_start(ProcessState::Created).unwrap_or_default()
    }

    /// Marks the process as running. Returns its execution, and the signals that it gets now; `None` for the signals of
    /// one that has been reported as ended while it started.
    pub(crate) fn mark_running(
        &self,
        execution: Execution,
        streams: Streams,
    ) -> (Arc<Execution>, Option<Vec<SignalRequest>>) {
        let execution = Arc::new(execution);
        *self.running() = Some(Running {
            execution: Arc::clone(&execution),
            streams,
        });
        if self.is_stdin_closed.load(Ordering::Acquire) {
            self.close_stdin();
        }
        (execution, self.end_start(ProcessState::Running))
    }

    fn end_start(&self, next: ProcessState) -> Option<Vec<SignalRequest>> {
        match self.change(|state| matches!(state, ProcessState::Starting(_)).then_some(next))? {
            ProcessState::Starting(signals) => Some(signals),
            _ => None,
        }
    }

    /// Marks the process as ended. Returns false if it has been already.
    pub(crate) fn mark_exited(&self, exit: Exit) -> bool {
        self.close_stdin();
        let before = self.change(|state| match state {
            ProcessState::Exited(_) => None,
            _ => Some(ProcessState::Exited(exit)),
        });
        before.is_some()
    }

    /// Returns how the process ended, before it is deleted. One that is created can no longer be started then.
    pub(crate) fn begin_delete(&self) -> Result<Exit, ShimError> {
        self.change(|state| match state {
            ProcessState::Created => Some(ProcessState::Exited(Exit::with_code(0))),
            _ => None,
        });
        match self.state() {
            ProcessState::Exited(exit) => Ok(exit),
            _ => Err(ShimError::State("still runs")),
        }
    }

    /// Takes a signal of a client. One that is created ends with a signal that ends processes by default, as the
    /// process does which waits in a container of runc.
    pub(crate) fn take_signal(&self, request: SignalRequest) -> Result<SignalEffect, ShimError> {
        let before = self.change(|state| match state {
            ProcessState::Created if request.is_deadly() => {
                let code = 128 + request.signal.unsigned_abs();
                Some(ProcessState::Exited(Exit::with_code(code)))
            }
            ProcessState::Starting(signals) => {
                signals.push(request);
                None
            }
            _ => None,
        });
        match (before, self.state()) {
            (Some(_), ProcessState::Exited(exit)) => Ok(SignalEffect::Ended(exit)),
            (None, ProcessState::Exited(_)) => Err(ShimError::Finished),
            (None, ProcessState::Running) if request.signal != 0 => Ok(SignalEffect::Send),
            _ => Ok(SignalEffect::None),
        }
    }

    /// Changes the state to what the function returns. Returns the state before, if it was changed.
    fn change(
        &self,
        next: impl FnOnce(&mut ProcessState) -> Option<ProcessState>,
    ) -> Option<ProcessState> {
        let mut before = None;
        self.state.send_if_modified(|state| {
            before = next(state).map(|next| std::mem::replace(state, next));
            before.is_some()
        });
        before
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
            .signal_command(signal)
            .map_err(|_| ShimError::Finished)
    }

    /// Waits until the output of a process that has ended is copied, and discards what is left then.
    pub(crate) async fn end_output(&self, deadline: Instant) {
        let running = self.running().take();
        if let Some(running) = running {
            running.streams.end_output(deadline).await;
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
    fn a_process_that_was_reported_as_ended_while_it_started_does_not_run() {
        let process = Process::new(StdioPaths::default());
        process.begin_start().unwrap();
        assert!(process.mark_exited(Exit::killed()));
        assert_eq!(process.end_start(ProcessState::Running), None);
        assert!(matches!(process.state(), ProcessState::Exited(_)));
    }

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
