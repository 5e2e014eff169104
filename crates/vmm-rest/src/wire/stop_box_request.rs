use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long a box may take to stop before it is killed, unless a request to stop it says otherwise.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(30);

/// The request keeps its client waiting as long, and a connection.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How to stop a box.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct StopBoxRequest {
    /// Seconds until it is killed; more than a day counts as a day.
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

    /// How long the box has; `None` if that is no span of time.
    pub(crate) fn grace(&self) -> Option<Duration> {
        match self.timeout_seconds {
            None => Some(STOP_GRACE),
            Some(seconds) if seconds >= 0.0 => {
                Some(Duration::try_from_secs_f64(seconds).map_or(DAY, |grace| grace.min(DAY)))
            }
            Some(_) => None,
        }
    }
}
