use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vmm_protocol::Ending;

use crate::HealthState;

/// Where a box is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxStatus {
    /// Created, and never started.
    Configured,
    /// Its payload runs.
    Running,
    /// It ended because somebody asked, or by itself with code 0. It can be started again.
    Stopped,
    /// It could not be started, or ended in any other way. It can be started again.
    Failed,
}

impl fmt::Display for BoxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Configured => "configured",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// What there is to know about a box at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BoxInfo {
    /// Given by the runtime: 26 characters, ordered by creation.
    pub id: String,
    /// Given by the user, unique.
    pub name: Option<String>,
    /// Where it is in its life.
    pub status: BoxStatus,
    /// Whether it runs and is about to end: it has been asked to, or has lost the runtime that it
    /// was attached to.
    pub stopping: bool,
    /// What its health check says; `None` without a check, or before the first start.
    pub health: Option<HealthState>,
    /// The shim, while it runs.
    pub pid: Option<u32>,
    /// The payload's own process, while it runs, if it has one.
    pub payload_pid: Option<u32>,
    /// How the last run ended, if there was one and it is over: the code, or 128 + signal.
    pub exit_code: Option<i32>,
    /// The signal that ended the last run, if one did.
    pub signal: Option<i32>,
    /// How the last run ended, as the shim recorded it, or the kernel told; `None` if neither did.
    pub ending: Option<Ending>,
    /// Why it failed, in a sentence: a crash report, a file that could not be read.
    pub error: Option<String>,
    /// Whether it outlives the runtime.
    pub detached: bool,
    /// How many processors its payload may use; all of them if it does not say.
    pub cpus: Option<u32>,
    /// How much memory its payload may use, in MiB; as much as there is if it does not say.
    pub memory_mib: Option<u32>,
    /// How many processes and threads its payload may have at a time; 4,096 if it does not say.
    pub pids: Option<u32>,
    /// The user's.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its status last changed.
    pub updated_at: Timestamp,
    /// When it last began to run, if this runtime saw it.
    pub started_at: Option<Timestamp>,
}
