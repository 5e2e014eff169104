use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use vmm_protocol::{Ending, with_causes};

use super::state::{Phase, State};
use super::{BoxCounts, BoxRecord, BoxStatus, Outcome};
use crate::{HealthState, RestartPolicy, ShimHandler};

/// The state of a box at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BoxInfo {
    /// The id that the runtime assigned: 26 characters, ordered by creation.
    pub id: String,
    /// The name that the user chose, unique in the runtime.
    pub name: Option<String>,
    /// The name of the image that the box was created from, if any.
    pub image: Option<String>,
    /// The status.
    pub status: BoxStatus,
    /// Whether the box is running but about to end: a stop was requested, or the runtime that it
    /// was attached to is gone.
    pub stopping: bool,
    /// The health state; `None` without a health check or before the first start.
    pub health: Option<HealthState>,
    /// The pid of the shim while the box is running.
    pub pid: Option<u32>,
    /// The pid of the payload while the box is running, if the engine reports one.
    pub payload_pid: Option<u32>,
    /// The exit code of the last run after it has ended: the payload's code, or 128 plus the signal
    /// number.
    pub exit_code: Option<i32>,
    /// The signal that ended the last run, if any.
    pub signal: Option<i32>,
    /// How the last run ended, as the shim recorded it or the kernel reported it; `None` if neither
    /// is available.
    pub ending: Option<Ending>,
    /// Why the box failed, as text: a crash report, or a file that could not be read.
    pub error: Option<String>,
    /// Whether the box outlives the runtime.
    pub detached: bool,
    /// The number of processors that the payload may use; all if not set.
    pub cpus: Option<u32>,
    /// The memory that the payload may use, in MiB; unlimited if not set.
    pub memory_mib: Option<u32>,
    /// The number of processes and threads that the payload may have at a time; 4,096 if not set.
    pub pids: Option<u32>,
    /// When the runtime starts the box again.
    pub restart_policy: RestartPolicy,
    /// The number of restarts by the policy since the last start by a user, including one that is
    /// due.
    pub restarts: u32,
    /// Whether a restart by the policy is due or in progress.
    pub restarting: bool,
    /// Whether the runtime removes the box when it has ended.
    pub auto_remove: bool,
    /// The labels that the user set.
    pub labels: BTreeMap<String, String>,
    /// The time of the creation.
    pub created_at: Timestamp,
    /// The time of the last change of the status.
    pub updated_at: Timestamp,
    /// The time of the last start, if this runtime started it.
    pub started_at: Option<Timestamp>,
}

/// What the state of a box looks like from outside.
impl State {
    /// Returns the info of the box.
    pub(super) fn info(&self) -> BoxInfo {
        self.info_of(self.shown_shim(), self.record.last.as_ref())
    }

    /// Adds the box to the counts.
    pub(super) fn count(&self, counts: &mut BoxCounts) {
        let shim = self.shown_shim();
        counts.add(
            self.status_of(shim, self.record.last.as_ref()),
            self.is_stopping(shim),
        );
    }

    /// Returns the shim of a box that is shown as running.
    fn shown_shim(&self) -> Option<&Arc<ShimHandler>> {
        match &self.phase {
            Phase::Running { shim, .. } => Some(shim),
            // Until the exit is reported.
            Phase::Exited { shim, .. } => shim.as_ref(),
            _ => None,
        }
    }

    fn status_of(&self, shim: Option<&Arc<ShimHandler>>, last: Option<&Outcome>) -> BoxStatus {
        match (shim, last) {
            (Some(_), _) => BoxStatus::Running,
            (None, None) if self.damage.is_some() => BoxStatus::Failed,
            (None, None) => BoxStatus::Configured,
            (None, Some(last)) => last.status,
        }
    }

    fn is_stopping(&self, shim: Option<&Arc<ShimHandler>>) -> bool {
        shim.is_some()
            && match self.phase {
                Phase::Running {
                    stop_requested,
                    watchdog_lost,
                    ..
                } => stop_requested || watchdog_lost,
                _ => true,
            }
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
        let damage = self.damage.as_ref().map(|damage| with_causes(damage));
        BoxInfo {
            id: id.clone(),
            name: spec.name.clone(),
            image: spec.image.clone(),
            status: self.status_of(shim, last),
            stopping: self.is_stopping(shim),
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
            restart_policy: spec.restart,
            restarts: self.record.restart.count,
            restarting: self.is_restarting(),
            auto_remove: spec.auto_remove,
            labels: spec.labels.clone(),
            created_at: *created_at,
            updated_at: self.updated_at,
            started_at: self.started_at,
        }
    }
}
