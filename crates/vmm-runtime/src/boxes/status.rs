use std::fmt;

use serde::{Deserialize, Serialize};

/// The status of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxStatus {
    /// Created and never started.
    Configured,
    /// The payload is running.
    Running,
    /// The box ended on request, or by itself with exit code 0. It can be started again.
    Stopped,
    /// The box could not be started, or ended in any other way. It can be started again.
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
