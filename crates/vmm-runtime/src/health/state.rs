use std::fmt;

use serde::{Deserialize, Serialize};

/// The health of a box, according to its health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No probe has succeeded yet, and too few have failed.
    Starting,
    /// The latest probe succeeded, or fewer than [`retries`] have failed since the last success.
    ///
    /// [`retries`]: crate::HealthCheckOptions::retries
    Healthy,
    /// Too many consecutive probes failed, or the box ended by itself.
    Unhealthy,
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}
