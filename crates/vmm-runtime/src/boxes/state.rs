//! The state machine of a box.
//!
//! The *phase* follows the shim. The [gate](super::gate) decides which operations may begin.
//!
//! ```text
//!                           begin_start
//!               +------------------------------> Starting -------+
//!               |                                 |    |         |
//!               | <--------- cancel_start --------+    |         |
//!               |                                      |         |
//!               |                                 set_running    | set_exited
//!               |                                      |         | (the start
//!               |   set_running (re-attached)          v         |  failed)
//!   new ----> Idle ----------------------------> Running         |
//!               | |                                    |         |
//!               | | set_exited                    set_exited     |
//!               | | (ended offline)                    |         |
//!               | |                                    v         |
//!               | +----------------------------> Exited <--------+
//!               |                                  |
//!               +<---------- finish_run -----------+
//! ```
//!
//! A state performs no I/O. [`MicroBox`](super::MicroBox) locks it, reads and writes the files of
//! the box, and publishes its changes.

use std::sync::Arc;

use jiff::Timestamp;
use shim_reaper::ShimHandle;
use tokio_util::sync::CancellationToken;
use vmm_protocol::FileError;

use super::gate::Gate;
use super::{BoxRecord, Outcome, StartDecision};
use crate::process::{CleanupTarget, ticks_since_boot};
use crate::{HealthState, RuntimeError, ShimHandler};

/// The phase of a box's shim.
#[derive(Debug)]
pub(super) enum Phase {
    /// No shim, and no unreported exit.
    Idle,
    /// A start is in progress.
    Starting {
        /// Cancels the start.
        interrupt: CancellationToken,
        /// The shim, once it is spawned.
        shim: Option<ShimHandle>,
        /// The size of the console before this run.
        console_start: u64,
    },
    /// The payload is ready. The shim may have exited since.
    Running {
        shim: Arc<ShimHandler>,
        stop_requested: bool,
        /// Whether the watchdog hung up with an earlier runtime, so that the shim is about to end.
        watchdog_lost: bool,
        /// Whether the payload is frozen.
        is_paused: bool,
        /// What the kernel reports of the exit, while no descriptor or memory is left to read its
        /// record.
        unread_exit: Option<Outcome>,
    },
    /// The run has ended, and the exit is not reported yet. It is saved before it is reported.
    Exited {
        /// `None` for a failed start.
        shim: Option<Arc<ShimHandler>>,
        outcome: Outcome,
    },
}

/// The state of a box at one moment.
#[derive(Debug)]
pub(super) struct State {
    pub(super) record: BoxRecord,
    /// Incremented with every change of the record.
    pub(super) version: u64,
    /// The version of the record on disk.
    pub(super) saved_version: u64,
    /// Why `box.json` could not be read. The record is then a placeholder and is never written.
    pub(super) damage: Option<Arc<FileError>>,
    pub(super) phase: Phase,
    pub(super) gate: Gate,
    pub(super) health: Option<HealthState>,
    pub(super) started_at: Option<Timestamp>,
    /// When the run began, for the [search for its orphans](CleanupTarget::since).
    pub(super) run_since: Option<u64>,
    pub(super) updated_at: Timestamp,
    /// What must still be cleaned up after the last run.
    pub(super) cleanup_target: Option<CleanupTarget>,
    /// Whether a background task retries the cleanup.
    pub(super) is_retrying: bool,
}

impl State {
    /// Creates the state of a box in the phase `Idle`. `damage` is why `box.json` could not be read.
    pub(super) fn new(record: BoxRecord, damage: Option<FileError>) -> Self {
        let last = record.last.as_ref();
        Self {
            updated_at: last.map_or(record.created_at, |last| last.at),
            health: record.health_after_exit(),
            record,
            version: 0,
            saved_version: 0,
            damage: damage.map(Arc::new),
            phase: Phase::Idle,
            gate: Gate::Open,
            started_at: None,
            run_since: None,
            cleanup_target: None,
            is_retrying: false,
        }
    }

    /// Decides what a start must do, and enters the phase `Starting` if that is to launch a shim.
    /// Cancelling `closing` cancels the start.
    pub(super) fn begin_start(
        &mut self,
        closing: &CancellationToken,
    ) -> Result<StartDecision, RuntimeError> {
        match &self.phase {
            Phase::Running {
                shim,
                watchdog_lost,
                ..
            } if *watchdog_lost || shim.try_exit().is_some() => {
                return Ok(StartDecision::AwaitExit(Arc::clone(shim)));
            }
            Phase::Running { .. } => return Ok(StartDecision::Running),
            Phase::Exited { .. } => return Ok(StartDecision::NeedsCleanup),
            Phase::Idle | Phase::Starting { .. } => {}
        }
        // A search could not distinguish the orphans from the processes of a new run.
        if self.cleanup_target.is_some() {
            return Ok(StartDecision::NeedsCleanup);
        }
        if let Some(damage) = &self.damage {
            return Err(RuntimeError::Damaged {
                id: self.record.id.clone(),
                source: Arc::clone(damage),
            });
        }
        self.run_since = Some(ticks_since_boot());
        let interrupt = closing.child_token();
        self.phase = Phase::Starting {
            interrupt: interrupt.clone(),
            shim: None,
            console_start: 0,
        };
        self.updated_at = Timestamp::now();
        Ok(StartDecision::Launch {
            spec: Box::new(self.record.instance_spec()),
            interrupt,
        })
    }

    /// Stores the shim of the start in progress, and the size of the console before its run.
    pub(super) fn set_spawned(&mut self, spawned: &ShimHandle, size: u64) {
        if let Phase::Starting {
            shim,
            console_start,
            ..
        } = &mut self.phase
        {
            *shim = Some(spawned.clone());
            *console_start = size;
        }
    }

    /// Returns the shim of the start in progress, once it is spawned, and the size of the console
    /// before its run.
    pub(super) fn starting_shim(&self) -> Option<(ShimHandle, u64)> {
        match &self.phase {
            Phase::Starting {
                shim: Some(shim),
                console_start,
                ..
            } => Some((shim.clone(), *console_start)),
            _ => None,
        }
    }

    /// Interrupts the start in progress, if there is one. Its task then leaves the phase
    /// `Starting`.
    pub(super) fn interrupt_start(&self) {
        if let Phase::Starting { interrupt, .. } = &self.phase {
            interrupt.cancel();
        }
    }

    /// Returns to the phase `Idle` after an interrupted start.
    pub(super) fn cancel_start(&mut self) {
        self.phase = Phase::Idle;
        self.updated_at = Timestamp::now();
    }

    /// Returns whether the box outlives the runtime. The spec of a damaged box is unknown; keeping
    /// its shim is the safe choice.
    pub(super) fn is_detached(&self) -> bool {
        self.record.spec.detached || self.damage.is_some()
    }

    /// Enters the phase `Running`.
    pub(super) fn set_running(&mut self, shim: Arc<ShimHandler>, watchdog_lost: bool) {
        self.phase = Phase::Running {
            shim,
            stop_requested: false,
            watchdog_lost,
            is_paused: false,
            unread_exit: None,
        };
        // Not saved: if the runtime dies, it is due again.
        self.record.restart.due = false;
        let check = self.record.spec.health.as_ref();
        self.health = check.map(|_| HealthState::Starting);
        self.updated_at = Timestamp::now();
    }

    /// Returns whether the payload is frozen, and no end was requested.
    pub(super) fn is_paused(&self) -> bool {
        match self.phase {
            Phase::Running {
                stop_requested,
                watchdog_lost,
                is_paused,
                ..
            } => is_paused && !stop_requested && !watchdog_lost,
            _ => false,
        }
    }

    /// Stores whether the payload of the shim is frozen. Returns whether that changes what
    /// [`is_paused`](Self::is_paused) returns.
    pub(super) fn set_paused(&mut self, of: &Arc<ShimHandler>, paused: bool) -> bool {
        let was_paused = self.is_paused();
        if let Phase::Running {
            shim, is_paused, ..
        } = &mut self.phase
            && Arc::ptr_eq(shim, of)
        {
            *is_paused = paused;
        }
        self.is_paused() != was_paused
    }

    /// Returns whether the end of this shim was requested; `None` if the box is not in the phase
    /// `Running` with it.
    pub(super) fn is_stop_requested(&self, of: &Arc<ShimHandler>) -> Option<bool> {
        match &self.phase {
            Phase::Running {
                shim,
                stop_requested,
                ..
            } if Arc::ptr_eq(shim, of) => Some(*stop_requested),
            _ => None,
        }
    }

    /// Stores how the running shim has exited, although its exit record cannot be read yet.
    pub(super) fn set_unread_exit(&mut self, outcome: Outcome) {
        if let Phase::Running { unread_exit, .. } = &mut self.phase {
            *unread_exit = Some(outcome);
        }
    }

    /// Marks the exit of a running shim as requested, and returns the shim.
    pub(super) fn request_stop(&mut self) -> Option<Arc<ShimHandler>> {
        match &mut self.phase {
            Phase::Running {
                shim,
                stop_requested,
                ..
            } if shim.try_exit().is_none() => {
                *stop_requested = true;
                Some(Arc::clone(shim))
            }
            _ => None,
        }
    }

    /// Returns whether a shim is running or being started.
    pub(super) fn is_busy(&self) -> bool {
        match &self.phase {
            Phase::Starting { .. } => true,
            Phase::Running { shim, .. } => shim.try_exit().is_none(),
            Phase::Idle | Phase::Exited { .. } => false,
        }
    }

    /// Returns whether the shim has exited and the exit is not reported yet.
    pub(super) fn has_unreported_exit(&self) -> bool {
        match &self.phase {
            Phase::Running { shim, .. } => shim.try_exit().is_some(),
            Phase::Exited { .. } => true,
            Phase::Idle | Phase::Starting { .. } => false,
        }
    }

    /// Returns whether `box.json` is up to date. That of a damaged box is never written.
    pub(super) fn is_saved(&self) -> bool {
        self.version == self.saved_version || self.damage.is_some()
    }

    /// Returns whether nothing of the last run is left to report, clean up or save.
    pub(super) fn is_clean(&self) -> bool {
        self.gate == Gate::Removed
            || self.cleanup_target.is_none() && self.is_saved() && !self.has_unreported_exit()
    }

    /// Enters the phase `Exited`. The caller saves the outcome, cleans up, and then calls
    /// [`finish_run`](Self::finish_run).
    pub(super) fn set_exited(&mut self, shim: Option<Arc<ShimHandler>>, outcome: Outcome) {
        self.note_end(&outcome);
        self.phase = Phase::Exited { shim, outcome };
        self.version += 1;
    }

    /// Leaves the phase `Exited` and makes the outcome visible. Returns whether the box was
    /// running, or `None` in another phase.
    pub(super) fn finish_run(&mut self) -> Option<bool> {
        if !matches!(self.phase, Phase::Exited { .. }) {
            return None;
        }
        let Phase::Exited { shim, outcome } = std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return None;
        };
        self.updated_at = outcome.at;
        self.record.last = Some(outcome);
        self.health = self.record.health_after_exit();
        Some(shim.is_some())
    }

    /// Returns the record to write to disk.
    pub(super) fn to_record(&self) -> BoxRecord {
        let mut record = self.record.clone();
        if let Phase::Exited { outcome, .. } = &self.phase {
            record.last = Some(outcome.clone());
        }
        record.cleanup_due = self.cleanup_target.is_some();
        record
    }

    /// Sets the user of the box.
    pub(super) fn set_uid(&mut self, uid: Option<u32>) {
        if self.record.uid != uid {
            self.record.uid = uid;
            self.version += 1;
        }
    }

    /// Sets what must be cleaned up; `None` if nothing is left.
    pub(super) fn set_cleanup_target(&mut self, cleanup_target: Option<CleanupTarget>) {
        self.cleanup_target = cleanup_target;
        self.version += 1;
    }
}
