#[cfg(any(feature = "client", feature = "server"))]
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The grace period of a stop request that sets none.
#[cfg(any(feature = "client", feature = "server"))]
pub(crate) const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(30);

/// The longest grace period: the request occupies a connection for as long.
#[cfg(any(feature = "client", feature = "server"))]
const MAX_STOP_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// The request to stop a box.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct StopBoxRequest {
    /// The grace period in seconds, after which the box is killed; at most one day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, default = 30)]
    pub timeout_seconds: Option<f64>,
}

impl StopBoxRequest {
    /// Sets [`timeout_seconds`](Self::timeout_seconds).
    #[must_use]
    pub fn timeout_seconds(mut self, seconds: f64) -> Self {
        self.timeout_seconds = Some(seconds);
        self
    }

    /// Returns the grace period; `None` if it is not a non-negative number.
    #[cfg(any(feature = "client", feature = "server"))]
    pub(crate) fn grace(&self) -> Option<Duration> {
        match self.timeout_seconds {
            None => Some(DEFAULT_STOP_GRACE),
            Some(seconds) if seconds >= 0.0 => Some(
                Duration::try_from_secs_f64(seconds)
                    .map_or(MAX_STOP_GRACE, |grace| grace.min(MAX_STOP_GRACE)),
            ),
            Some(_) => None,
        }
    }
}
