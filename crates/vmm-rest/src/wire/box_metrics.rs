use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a box uses. A server leaves out what it cannot tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = BoxMetrics)]
#[non_exhaustive]
pub struct BoxMetricsResponse {
    /// Commands executed in it; 0, for this server executes none beside the payload.
    pub commands_executed_total: u64,
    /// Of these, those that failed.
    pub exec_errors_total: u64,
    /// Bytes sent to their stdin.
    pub bytes_sent_total: u64,
    /// Bytes read from their stdout and stderr.
    pub bytes_received_total: u64,
    /// Processor time per wall-clock time since it was started, in percent of the processors that it
    /// may use, up to 100; of the shim and all that descends from it now, and what these have
    /// collected.
    #[schema(minimum = 0, maximum = 100)]
    pub cpu_percent: Option<f32>,
    /// Resident memory of the same processes; what they share is counted for each.
    pub memory_bytes: Option<u64>,
}
