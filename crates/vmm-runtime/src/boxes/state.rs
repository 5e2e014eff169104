use std::sync::Arc;

use jiff::Timestamp;
use vmm_protocol::{Ending, FileError};

use super::gate::Gate;
use super::phase::Phase;
use super::{BoxInfo, BoxRecord, BoxStatus, Outcome};
use crate::process::Litter;
use crate::{HealthState, Probe, ShimHandler};

/// What a box is and does at one moment.
#[derive(Debug)]
pub(super) struct State {
    pub(super) record: BoxRecord,
    /// Rises with every change of the record.
    pub(super) version: u64,
    /// Why `box.json` could not be read; the record is then a stand-in, and never written.
    pub(super) damage: Option<Arc<FileError>>,
    pub(super) phase: Phase,
    pub(super) gate: Gate,
    pub(super) health: Option<HealthState>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) updated_at: Timestamp,
    /// What is still to be searched for.
    pub(super) litter: Option<Litter>,
}

impl State {
    /// What is to be is unknown for a damaged box; not to end it is the safe side.
    pub(super) fn is_detached(&self) -> bool {
        self.record.spec.detached || self.damage.is_some()
    }

    pub(super) fn run(&mut self, shim: ShimHandler, ending: bool) -> Arc<ShimHandler> {
        let shim = Arc::new(shim);
        self.phase = Phase::Up {
            shim: Arc::clone(&shim),
            stop_requested: false,
            ending,
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

    pub(super) fn request_stop(&mut self) -> Option<Arc<ShimHandler>> {
        match &mut self.phase {
            Phase::Up {
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

    /// Whether a shim runs, or is being started.
    pub(super) fn is_busy(&self) -> bool {
        match &self.phase {
            Phase::Starting { .. } => true,
            Phase::Up { shim, .. } => shim.try_exit().is_none(),
            Phase::Down | Phase::Ended { .. } => false,
        }
    }

    /// Probes are no children of the shim, which therefore cannot see to what they start.
    pub(super) fn has_probes(&self) -> bool {
        let check = self.record.spec.health.as_ref();
        check.is_some_and(|check| matches!(check.probe, Probe::Command { .. }))
    }

    pub(super) fn shut_gate(&mut self) {
        if self.gate == Gate::Open {
            self.gate = Gate::Closed;
        }
    }

    /// Notes how the run has ended, to be saved and then [reported](Self::report).
    pub(super) fn note_end(&mut self, shim: Option<Arc<ShimHandler>>, outcome: Outcome) {
        self.phase = Phase::Ended { shim, outcome };
        self.version += 1;
    }

    /// From now on the noted end is what the box shows. Returns whether the box was running;
    /// `None` if no end is noted.
    pub(super) fn report(&mut self) -> Option<bool> {
        if !matches!(self.phase, Phase::Ended { .. }) {
            return None;
        }
        let Phase::Ended { shim, outcome } = std::mem::replace(&mut self.phase, Phase::Down) else {
            return None;
        };
        self.updated_at = outcome.at;
        self.record.last = Some(outcome);
        self.health = self.record.health_when_down();
        Some(shim.is_some())
    }

    /// As it is to be on disk.
    pub(super) fn to_record(&self) -> BoxRecord {
        let mut record = self.record.clone();
        if let Phase::Ended { outcome, .. } = &self.phase {
            record.last = Some(outcome.clone());
        }
        record.cleanup_due = self.litter.is_some();
        record
    }

    pub(super) fn set_litter(&mut self, litter: Option<Litter>) {
        self.litter = litter;
        self.version += 1;
    }

    pub(super) fn info(&self) -> BoxInfo {
        let shim = match &self.phase {
            Phase::Up { shim, .. } => Some(shim),
            // Until it is reported.
            Phase::Ended { shim, .. } => shim.as_ref(),
            _ => None,
        };
        self.info_of(shim, self.record.last.as_ref())
    }

    /// As if the last run had ended like this.
    pub(super) fn info_after(&self, outcome: &Outcome) -> BoxInfo {
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
                    Phase::Up {
                        stop_requested,
                        ending,
                        ..
                    } => stop_requested || ending,
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
