use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long a box may take to stop before it is killed, unless a request to stop it says otherwise.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(30);

/// How to stop a box.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct StopBoxRequest {
    /// Seconds until it is killed, a day at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 86400, default = 30)]
    pub timeout_seconds: Option<f64>,
}

impl StopBoxRequest {
    /// The longest [`timeout_seconds`](Self::timeout_seconds) that a server accepts: a day.
    pub const MAX_TIMEOUT_SECONDS: f64 = 86_400.0;

    /// Sets [`timeout_seconds`](Self::timeout_seconds).
    #[must_use]
    pub fn timeout_seconds(mut self, seconds: f64) -> Self {
        self.timeout_seconds = Some(seconds);
        self
    }

    /// How long the box has; `None` if that is no span of time, or too long a one.
    pub(crate) fn grace(&self) -> Option<Duration> {
        match self.timeout_seconds {
            None => Some(STOP_GRACE),
            Some(seconds) if seconds <= Self::MAX_TIMEOUT_SECONDS => {
                Duration::try_from_secs_f64(seconds).ok()
            }
            Some(_) => None,
        }
    }
}
