use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How to stop a box.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct StopBoxRequest {
    /// Seconds until it is killed. Where that takes longer than a server lets a request take, the
    /// answer is `timeout`, and the stop goes on.
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
}
