use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vmm_runtime::BoxInfo;

/// Where a box is in its life. This server knows all but `paused` and `unknown`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BoxStatus {
    /// Created, and never started.
    Configured,
    /// Its payload runs.
    Running,
    /// It is being stopped.
    Stopping,
    /// It ended because somebody asked, or by itself with code 0.
    Stopped,
    /// It is frozen.
    Paused,
    /// It could not be started, or ended in any other way.
    Failed,
    /// Anything else, also what only a newer server knows.
    #[serde(other)]
    Unknown,
}

/// There is no such status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no status of a box; there are {list}", list = BoxStatus::list())]
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

    /// As on the wire.
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

    /// Whether its payload has not ended: it runs, is being stopped, or is frozen.
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

impl From<&BoxInfo> for BoxStatus {
    fn from(info: &BoxInfo) -> Self {
        use vmm_runtime::BoxStatus as Status;
        match info.status {
            Status::Configured => Self::Configured,
            Status::Running if info.stopping => Self::Stopping,
            Status::Running => Self::Running,
            Status::Stopped => Self::Stopped,
            Status::Failed => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_wire_form_and_is_parsed() {
        for status in BoxStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
            assert_eq!(status.name().parse(), Ok(status));
        }
        let refused = "asleep".parse::<BoxStatus>().unwrap_err();
        assert!(refused.to_string().contains("configured, running"));
    }

    #[test]
    fn a_status_of_a_newer_server_is_read_as_unknown() {
        let status: BoxStatus = serde_json::from_str(r#""asleep""#).unwrap();
        assert_eq!(status, BoxStatus::Unknown);
    }
}
