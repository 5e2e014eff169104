use std::fmt;

use serde::{Deserialize, Serialize};

/// What a box's health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No probe has succeeded yet, nor have enough failed.
    Starting,
    /// The latest probe succeeded, or fewer than [`retries`] have failed since one did.
    ///
    /// [`retries`]: crate::HealthCheckOptions::retries
    Healthy,
    /// Too many probes in a row have failed, or the box ended by itself.
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
