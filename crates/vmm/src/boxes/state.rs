use std::sync::Arc;

use jiff::Timestamp;
use vmm_shim::{Ending, FileError};

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
            } => {
                *stop_requested = true;
                Some(Arc::clone(shim))
            }
            _ => None,
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

    pub(super) fn conclude(&mut self, outcome: Outcome) {
        self.phase = Phase::Down;
        self.updated_at = outcome.at;
        self.record.last = Some(outcome);
        self.health = self.record.health_when_down();
        self.version += 1;
    }

    pub(super) fn info(&self) -> BoxInfo {
        let BoxRecord {
            id,
            created_at,
            spec,
            last,
        } = &self.record;
        let shim = match &self.phase {
            Phase::Up { shim, .. } => Some(shim),
            _ => None,
        };
        let last = match shim {
            Some(_) => None,
            None => last.as_ref(),
        };
        let ending: Option<&Ending> = last.and_then(|last| last.ending.as_ref());
        let damage = self.damage.as_ref().map(ToString::to_string);
        BoxInfo {
            id: id.clone(),
            name: spec.name.clone(),
            status: match (shim, last) {
                (Some(_), _) => BoxStatus::Running,
                (None, None) if damage.is_some() => BoxStatus::Failed,
                (None, _) => self.record.status(),
            },
            stopping: matches!(
                self.phase,
                Phase::Up {
                    stop_requested,
                    ending,
                    ..
                } if stop_requested || ending
            ),
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
