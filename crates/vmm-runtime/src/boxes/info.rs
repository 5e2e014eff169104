use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use shim_reaper::ShimHandle;
use vmm_protocol::{BootTimes, Ending, UnappliedRule, with_causes};

use super::state::{Phase, State};
use super::{BoxCounts, BoxId, BoxRecord, BoxSpec, BoxStatus, Outcome};
use crate::{HealthState, RestartPolicy, ShimHandler};

/// The state of a box at one moment.
///
/// The serialized form has all fields except [`spec`](Self::spec), which may contain secrets.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BoxInfo {
    /// The id that the runtime assigned.
    pub id: BoxId,
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
    /// The pid of the shim while the box is starting, as soon as there is one, or running.
    pub pid: Option<u32>,
    /// The pid of the payload while the box is running, if the engine reports one.
    pub payload_pid: Option<u32>,
    /// How long the guest took to boot, while the box is running, if this runtime started it and its
    /// guest has an agent.
    pub boot_times: Option<BootTimes>,
    /// How long the start took until the payload was ready, in milliseconds, while the box is running,
    /// if this runtime started it.
    pub start_ms: Option<u64>,
    /// The user of the VMM of a guest, if the box has one of its own.
    pub uid: Option<u32>,
    /// The confinement rules that are not applied to the payload while the box is running; `None` if
    /// it is not, or if an earlier runtime has started it.
    pub unapplied_rules: Option<Vec<UnappliedRule>>,
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
    /// The last lines that the payload printed, up to 4 KiB, if the last start failed.
    pub last_output: Option<String>,
    /// The spec that the box was created from. Not serialized.
    #[serde(skip)]
    pub spec: Arc<BoxSpec>,
    /// The name of the engine that runs the payload.
    pub engine: String,
    /// The directory of the box, for [`BoxDir`](crate::BoxDir).
    pub dir: PathBuf,
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

/// What a box shows of its runs.
#[derive(Clone, Copy)]
enum Shown<'a> {
    /// A start in progress, with its shim once it is spawned.
    Starting(Option<&'a ShimHandle>),
    /// A run whose end is not reported yet.
    Running(&'a ShimHandler),
    /// The end of the last run.
    Ended(Option<&'a Outcome>),
}

/// What the state of a box looks like from outside.
impl State {
    /// Returns the info of the box.
    pub(super) fn info(&self, dir: &Path) -> BoxInfo {
        let shown = self.shown();
        let BoxRecord {
            id,
            created_at,
            spec,
            ..
        } = &self.record;
        let (boot_times, start_duration) = match shown {
            Shown::Running(shim) => (shim.boot_times(), shim.start_duration()),
            _ => (None, None),
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (pid, payload_pid, last) = match shown {
            Shown::Starting(shim) => (shim.map(ShimHandle::id), None, None),
            Shown::Running(shim) => (Some(shim.pid()), shim.payload_pid(), None),
            Shown::Ended(last) => (None, None, last),
        };
        let unapplied_rules = match shown {
            Shown::Running(shim) => shim.unapplied_rules().map(<[_]>::to_vec),
            _ => None,
        };
        let ending: Option<&Ending> = last.and_then(|last| last.ending.as_ref());
        let damage = self.damage.as_ref().map(|damage| with_causes(damage));
        BoxInfo {
            id: id.clone(),
            name: spec.name.clone(),
            image: spec.image.clone(),
            status: self.status_of(shown),
            stopping: self.is_stopping(shown),
            health: self.health,
            pid,
            payload_pid,
            boot_times,
            start_ms: start_duration.map(millis),
            uid: self.record.uid,
            unapplied_rules,
            exit_code: ending.map(Ending::shell_code),
            signal: ending.and_then(Ending::signal),
            ending: ending.cloned(),
            error: damage.or_else(|| last.and_then(|last| last.error.clone())),
            last_output: last.and_then(|last| last.output.clone()),
            spec: Arc::clone(spec),
            engine: spec.payload.engine.clone(),
            dir: dir.to_owned(),
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

    /// Adds the box to the counts.
    pub(super) fn count(&self, counts: &mut BoxCounts) {
        let shown = self.shown();
        let helpers = match shown {
            Shown::Running(shim) => shim.helpers(),
            _ => 0,
        };
        let (status, stopping) = (self.status_of(shown), self.is_stopping(shown));
        counts.add(status, stopping, helpers.into());
    }

    /// An end shows when it is reported. If the exit record cannot be read because descriptors or
    /// memory are exhausted, what the kernel reports shows.
    fn shown(&self) -> Shown<'_> {
        match &self.phase {
            Phase::Starting { shim, .. } => Shown::Starting(shim.as_ref()),
            Phase::Running {
                unread_exit: Some(outcome),
                ..
            } => Shown::Ended(Some(outcome)),
            Phase::Running { shim, .. }
            | Phase::Exited {
                shim: Some(shim), ..
            } => Shown::Running(shim),
            Phase::Exited { shim: None, .. } => Shown::Starting(None),
            Phase::Idle => Shown::Ended(self.record.last.as_ref()),
        }
    }

    fn status_of(&self, shown: Shown<'_>) -> BoxStatus {
        match shown {
            Shown::Starting(_) => BoxStatus::Starting,
            Shown::Running(_) if self.is_paused() => BoxStatus::Paused,
            Shown::Running(_) => BoxStatus::Running,
            Shown::Ended(None) if self.damage.is_some() => BoxStatus::Failed,
            Shown::Ended(None) => BoxStatus::Configured,
            Shown::Ended(Some(last)) => last.status,
        }
    }

    fn is_stopping(&self, shown: Shown<'_>) -> bool {
        matches!(shown, Shown::Running(_))
            && match self.phase {
                Phase::Running {
                    stop_requested,
                    watchdog_lost,
                    ..
                } => stop_requested || watchdog_lost,
                _ => true,
            }
    }
}
