use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vmm_runtime::RuntimeMetrics;

/// What the runtime has done and does. Everything counts from its start; an older server leaves
/// out what it does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = RuntimeMetrics)]
#[non_exhaustive]
pub struct RuntimeMetricsResponse {
    /// Boxes created; never falls.
    pub boxes_created_total: u64,
    /// Times that a box could not be started, or failed while it ran; never falls.
    pub boxes_failed_total: u64,
    /// Of these, the times that it was neither the payload that ended with a code, nor the request
    /// that asked for what cannot be run; never falls.
    pub boxes_crashed_total: u64,
    /// Times that a box stopped; never falls.
    pub boxes_stopped_total: u64,
    /// Boxes that run now.
    pub num_running_boxes: u64,
    /// Commands executed in boxes; 0, for this server executes none beside the payloads.
    pub total_commands_executed: u64,
    /// Of these, those that failed.
    pub total_exec_errors: u64,
    /// Shims collected by the reaper; never falls.
    pub shim_reaped: u64,
    /// Shims whose end the reaper saw but did not collect; never falls.
    pub shim_reaper_vanished: u64,
    /// Shims that the reaper watches now.
    pub shim_reaper_registered: u64,
    /// Sweeps that the reaper completed; never falls, and never stands still.
    pub shim_reaper_sweeps: u64,
    /// When the last one was, in milliseconds since 1970.
    pub shim_reaper_last_sweep_at_ms: Option<i64>,
    /// How often the reaper's worker had to be replaced; never falls.
    pub shim_reaper_respawns: u64,
    /// Whether the reaper's worker is there; `null` from a server that does not say.
    pub shim_reaper_alive: Option<bool>,
}

impl From<RuntimeMetrics> for RuntimeMetricsResponse {
    fn from(metrics: RuntimeMetrics) -> Self {
        Self {
            boxes_created_total: metrics.boxes_created_total,
            boxes_failed_total: metrics.boxes_failed_total,
            boxes_crashed_total: metrics.boxes_crashed_total,
            boxes_stopped_total: metrics.boxes_stopped_total,
            num_running_boxes: metrics.num_running_boxes,
            total_commands_executed: 0,
            total_exec_errors: 0,
            shim_reaped: metrics.shim_reaped,
            shim_reaper_vanished: metrics.shim_reaper_vanished,
            shim_reaper_registered: metrics.shim_reaper_registered,
            shim_reaper_sweeps: metrics.shim_reaper_sweeps,
            shim_reaper_last_sweep_at_ms: metrics.shim_reaper_last_sweep_at_ms,
            shim_reaper_respawns: metrics.shim_reaper_respawns,
            shim_reaper_alive: Some(metrics.shim_reaper_alive),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_runtime_metrics_back_compat_default_zero_for_missing_shim_fields() {
        let older = r#"{
            "boxes_created_total": 5, "boxes_failed_total": 1, "boxes_stopped_total": 2,
            "num_running_boxes": 2, "total_commands_executed": 7, "total_exec_errors": 0
        }"#;
        let read: RuntimeMetricsResponse = serde_json::from_str(older).unwrap();
        assert_eq!(read.boxes_created_total, 5);
        assert_eq!(read.total_commands_executed, 7);
        assert_eq!(
            (
                read.shim_reaped,
                read.shim_reaper_vanished,
                read.shim_reaper_registered
            ),
            (0, 0, 0)
        );
        assert_eq!(read.shim_reaper_alive, None);
    }

    #[test]
    fn test_runtime_metrics_shim_fields_round_trip() {
        let sent = RuntimeMetricsResponse {
            shim_reaped: 3,
            shim_reaper_vanished: 1,
            shim_reaper_registered: u64::MAX,
            shim_reaper_alive: Some(true),
            ..RuntimeMetricsResponse::default()
        };
        let wire = serde_json::to_value(&sent).unwrap();
        assert_eq!(wire["shim_reaped"], 3);
        assert_eq!(wire["shim_reaper_vanished"], 1);
        assert_eq!(wire["shim_reaper_registered"], u64::MAX);
        let read: RuntimeMetricsResponse = serde_json::from_value(wire).unwrap();
        assert_eq!(read, sent);
    }
}
