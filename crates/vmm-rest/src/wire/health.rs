use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a box's health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// No probe has succeeded yet, nor have enough failed.
    Starting,
    /// The latest probe succeeded, or not enough have failed since one did.
    Healthy,
    /// Too many probes in a row have failed, or the box ended by itself.
    Unhealthy,
    /// Something that only a newer server knows.
    #[serde(other)]
    Other,
}

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
