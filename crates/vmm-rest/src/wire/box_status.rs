use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
#[cfg(feature = "server")]
use vmm_runtime::{BoxInfo, ListOptions};

/// The stage of a box's life. This server reports all but `unknown`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BoxStatus {
    /// The box was created and has never been started, or a start is in progress:
    /// [`BoxResponse::starting`](super::BoxResponse::starting) tells them apart.
    Configured,
    /// The payload runs.
    Running,
    /// The box runs, and a stop is in progress.
    Stopping,
    /// The last run ended on request, or by itself with code 0.
    Stopped,
    /// The box is frozen.
    Paused,
    /// The box could not be started, or the last run ended in any other way.
    Failed,
    /// Any other status, such as one that only a newer server knows.
    #[serde(other)]
    Unknown,
}

/// The error of parsing a [`BoxStatus`] from an unknown name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a box status; use one of: {list}", list = BoxStatus::list())]
pub struct UnknownStatus(String);

impl BoxStatus {
    const ALL: [Self; 7] = [
        Self::Configured,
        Self::Running,
        Self::Stopping,
        Self::Stopped,
        Self::Paused,
        Self::Failed,
        Self::Unknown,
    ];

    /// Returns the name of the status on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// Returns whether the payload has not ended: the box is running, stopping or paused.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Stopping | Self::Paused)
    }

    fn list() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for BoxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for BoxStatus {
    type Err = UnknownStatus;

    fn from_str(name: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.name() == name)
            .ok_or_else(|| UnknownStatus(name.to_owned()))
    }
}

#[cfg(feature = "server")]
impl BoxStatus {
    /// Returns the options that list the boxes with this status, or `None` if this server has no
    /// such box.
    pub(crate) fn options(self) -> Option<ListOptions> {
        use vmm_runtime::BoxStatus as Status;
        let options = ListOptions::default();
        Some(match self {
            Self::Configured => options.status(Status::Configured).status(Status::Starting),
            Self::Running => options.status(Status::Running).stopping(false),
            Self::Stopping => options.status(Status::Running).stopping(true),
            Self::Stopped => options.status(Status::Stopped),
            Self::Failed => options.status(Status::Failed),
            Self::Paused => options.status(Status::Paused),
            Self::Unknown => return None,
        })
    }
}

#[cfg(feature = "server")]
impl From<&BoxInfo> for BoxStatus {
    fn from(info: &BoxInfo) -> Self {
        use vmm_runtime::BoxStatus as Status;
        match info.status {
            // The public API has no status for a start in progress.
            Status::Configured | Status::Starting => Self::Configured,
            Status::Running if info.stopping => Self::Stopping,
            Status::Running => Self::Running,
            Status::Paused => Self::Paused,
            Status::Stopped => Self::Stopped,
            Status::Failed => Self::Failed,
        }
    }
}

/// The result of a box's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// No probe has succeeded yet, and too few have failed to call the box unhealthy.
    Starting,
    /// The latest probe succeeded, or too few have failed since the last success.
    Healthy,
    /// Too many probes in a row have failed, or the box ended by itself.
    Unhealthy,
    /// A state that only a newer server knows.
    #[serde(other)]
    Other,
}

#[cfg(feature = "server")]
impl From<vmm_runtime::HealthState> for Health {
    fn from(state: vmm_runtime::HealthState) -> Self {
        use vmm_runtime::HealthState;
        match state {
            HealthState::Starting => Self::Starting,
            HealthState::Healthy => Self::Healthy,
            HealthState::Unhealthy => Self::Unhealthy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_serializes_to_its_name_and_parses_from_it() {
        for status in BoxStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
            assert_eq!(status.name().parse(), Ok(status));
        }
        let refused = "asleep".parse::<BoxStatus>().unwrap_err();
        assert!(refused.to_string().contains("configured, running"));
    }

    #[test]
    fn an_unknown_status_is_read_as_unknown() {
        let status: BoxStatus = serde_json::from_str(r#""asleep""#).unwrap();
        assert_eq!(status, BoxStatus::Unknown);
    }
}
