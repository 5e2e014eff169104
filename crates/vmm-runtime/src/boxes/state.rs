use std::sync::Arc;

use jiff::Timestamp;
use vmm_protocol::{Ending, FileError};

use super::gate::Gate;
use super::phase::Phase;
use super::{BoxInfo, BoxRecord, BoxStatus, Outcome};
use crate::process::CleanupTarget;
use crate::{HealthState, Probe, ShimHandler};

/// The state of a box at one moment.
#[derive(Debug)]
pub(super) struct State {
    pub(super) record: BoxRecord,
    /// Incremented with every change of the record.
    pub(super) version: u64,
    /// Why `box.json` could not be read. The record is then a placeholder and is never written.
    pub(super) damage: Option<Arc<FileError>>,
    pub(super) phase: Phase,
    pub(super) gate: Gate,
    pub(super) health: Option<HealthState>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) updated_at: Timestamp,
    /// What must still be cleaned up after the last run.
    pub(super) cleanup_target: Option<CleanupTarget>,
}

impl State {
    /// Returns whether the box outlives the runtime. The spec of a damaged box is unknown; keeping
    /// its shim is the safe choice.
    pub(super) fn is_detached(&self) -> bool {
        self.record.spec.detached || self.damage.is_some()
    }

    /// Enters the phase `Running`.
    pub(super) fn set_running(
        &mut self,
        shim: ShimHandler,
        watchdog_lost: bool,
    ) -> Arc<ShimHandler> {
        let shim = Arc::new(shim);
        self.phase = Phase::Running {
            shim: Arc::clone(&shim),
            stop_requested: false,
            watchdog_lost,
        };
        self.health = self
            .record
            .spec
            .health
            .is_some()
            .then_some(HealthState::Starting);
        self.updated_at = Timestamp::now();
        shim
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

    /// Returns whether the health check runs commands. They are not children of the shim, so the
    /// shim cannot kill their descendants.
    pub(super) fn has_command_probe(&self) -> bool {
        let check = self.record.spec.health.as_ref();
        check.is_some_and(|check| matches!(check.probe, Probe::Command { .. }))
    }

    /// Lets no further operation begin because the runtime is closing.
    pub(super) fn close_gate(&mut self) {
        if self.gate == Gate::Open {
            self.gate = Gate::Closed;
        }
    }

    /// Enters the phase `Exited`. The caller saves the outcome and then calls
    /// [`finish_run`](Self::finish_run).
    pub(super) fn set_exited(&mut self, shim: Option<Arc<ShimHandler>>, outcome: Outcome) {
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

    /// Sets what must be cleaned up; `None` if nothing is left.
    pub(super) fn set_cleanup_target(&mut self, cleanup_target: Option<CleanupTarget>) {
        self.cleanup_target = cleanup_target;
        self.version += 1;
    }

    /// Returns the info of the box.
    pub(super) fn info(&self) -> BoxInfo {
        let shim = match &self.phase {
            Phase::Running { shim, .. } => Some(shim),
            // Shown as running until the exit is reported.
            Phase::Exited { shim, .. } => shim.as_ref(),
            _ => None,
        };
        self.info_of(shim, self.record.last.as_ref())
    }

    /// Returns the info of the box as if its last run had ended with `outcome`.
    pub(super) fn info_with_outcome(&self, outcome: &Outcome) -> BoxInfo {
        self.info_of(None, Some(outcome))
    }

    fn info_of(&self, shim: Option<&Arc<ShimHandler>>, last: Option<&Outcome>) -> BoxInfo {
        let BoxRecord {
            id,
            created_at,
            spec,
            ..
        } = &self.record;
        let last = match shim {
            Some(_) => None,
            None => last,
        };
        let ending: Option<&Ending> = last.and_then(|last| last.ending.as_ref());
        let damage = self.damage.as_ref().map(ToString::to_string);
        BoxInfo {
            id: id.clone(),
            name: spec.name.clone(),
            status: match (shim, last) {
                (Some(_), _) => BoxStatus::Running,
                (None, None) if damage.is_some() => BoxStatus::Failed,
                (None, None) => BoxStatus::Configured,
                (None, Some(last)) => last.status,
            },
            stopping: shim.is_some()
                && match self.phase {
                    Phase::Running {
                        stop_requested,
                        watchdog_lost,
                        ..
                    } => stop_requested || watchdog_lost,
                    _ => true,
                },
            health: self.health,
            pid: shim.map(|shim| shim.pid()),
            payload_pid: shim.and_then(|shim| shim.payload_pid()),
            exit_code: ending.map(Ending::shell_code),
            signal: ending.and_then(Ending::signal),
            ending: ending.cloned(),
            error: damage.or_else(|| last.and_then(|last| last.error.clone())),
            detached: spec.detached,
            cpus: spec.payload.cpus,
            memory_mib: spec.payload.memory_mib,
            pids: spec.payload.pids,
            labels: spec.labels.clone(),
            created_at: *created_at,
            updated_at: self.updated_at,
            started_at: self.started_at,
        }
    }
}
