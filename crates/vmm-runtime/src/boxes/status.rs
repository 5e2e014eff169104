use std::fmt;

use serde::{Deserialize, Serialize};

/// The status of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxStatus {
    /// Created and never started.
    Configured,
    /// A start is in progress: the payload is not ready yet.
    Starting,
    /// The payload is ready, and the box has not ended.
    Running,
    /// The box runs, and its payload is frozen until it is resumed.
    Paused,
    /// The box ended on request, or by itself with exit code 0. It can be started again.
    Stopped,
    /// The box could not be started, or ended in any other way. It can be started again.
    Failed,
}

/// The number of boxes of a runtime by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoxCounts {
    /// The boxes that are [`Configured`](BoxStatus::Configured).
    pub configured: u64,
    /// The boxes that are [`Starting`](BoxStatus::Starting).
    pub starting: u64,
    /// The boxes that are [`Running`](BoxStatus::Running), without those that are stopping.
    pub running: u64,
    /// The boxes that are running but [about to end](crate::BoxInfo::stopping).
    pub stopping: u64,
    /// The boxes that are [`Paused`](BoxStatus::Paused).
    pub paused: u64,
    /// The boxes that are [`Stopped`](BoxStatus::Stopped).
    pub stopped: u64,
    /// The boxes that are [`Failed`](BoxStatus::Failed).
    pub failed: u64,
    /// The helper processes of boxes.
    pub helpers: HelperCounts,
}

/// The number of helper processes, by the status of their boxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HelperCounts {
    /// Those of boxes that are [`Running`](BoxStatus::Running), without those that are stopping.
    pub running: u64,
    /// Those of boxes that are [about to end](crate::BoxInfo::stopping).
    pub stopping: u64,
    /// Those of boxes that are [`Paused`](BoxStatus::Paused).
    pub paused: u64,
}

impl BoxCounts {
    /// Counts one box and its helper processes.
    pub(super) fn add(&mut self, status: BoxStatus, stopping: bool, helpers: u64) {
        match status {
            BoxStatus::Running if stopping => self.helpers.stopping += helpers,
            BoxStatus::Paused => self.helpers.paused += helpers,
            _ => self.helpers.running += helpers,
        }
        let count = match status {
            BoxStatus::Configured => &mut self.configured,
            BoxStatus::Starting => &mut self.starting,
            BoxStatus::Running if stopping => &mut self.stopping,
            BoxStatus::Running => &mut self.running,
            BoxStatus::Paused => &mut self.paused,
            BoxStatus::Stopped => &mut self.stopped,
            BoxStatus::Failed => &mut self.failed,
        };
        *count += 1;
    }
}

impl fmt::Display for BoxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Configured => "configured",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}
