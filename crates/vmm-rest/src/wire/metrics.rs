#[cfg(feature = "server")]
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
#[cfg(feature = "server")]
use vmm_runtime::{BootTimes, BoxInfo, BoxStats, ExecutionMetrics, GuestStats, RuntimeMetrics};

/// The resource usage of a box. A server omits the values that it cannot determine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = BoxMetrics)]
#[non_exhaustive]
pub struct BoxMetricsResponse {
    /// Commands started in the box besides the payload, by this server.
    pub commands_executed_total: u64,
    /// Commands that could not be started.
    pub exec_errors_total: u64,
    /// Bytes sent to the stdin of commands.
    pub bytes_sent_total: u64,
    /// Bytes read from the stdout and stderr of commands.
    pub bytes_received_total: u64,
    /// CPU time divided by wall-clock time since the start of the box, in percent of the processors
    /// that the box may use, up to 100. Counted for the control group of the box, or else for the
    /// shim, its descendants that are alive, and the children that these have reaped.
    #[schema(minimum = 0, maximum = 100)]
    pub cpu_percent: Option<f32>,
    /// CPU time since the start of the box, in milliseconds, of the processes that `cpu_percent` counts.
    pub cpu_time_ms: Option<u64>,
    /// Memory of the control group of the box, or else the resident memory of the shim and its
    /// descendants, where shared memory is counted once per process.
    pub memory_bytes: Option<u64>,
    /// How long the guest took to boot, if this server started the box and its guest has an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub boot_timing: Option<BootTiming>,
    /// What the guest reports about itself, unless it is paused or does not respond.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub guest: Option<GuestMetrics>,
}

/// What a guest uses, as its own kernel counts it. A guest can report anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct GuestMetrics {
    /// The memory of the guest, without what its kernel reserves.
    pub memory_total_bytes: u64,
    /// How much memory programs of the guest can still use.
    pub memory_available_bytes: u64,
    /// The load average of the last minute.
    pub load_average: f64,
    /// The number of processes, without threads and kernel threads.
    pub processes: u64,
}

#[cfg(feature = "server")]
impl From<GuestStats> for GuestMetrics {
    fn from(stats: GuestStats) -> Self {
        Self {
            memory_total_bytes: stats.memory_total_bytes,
            memory_available_bytes: stats.memory_available_bytes,
            load_average: stats.load_average,
            processes: stats.processes,
        }
    }
}

/// How long a guest took to boot, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct BootTiming {
    /// From the request to start the box until it was ready.
    pub total_create_ms: Option<u64>,
    /// From the spawn of the VMM until the agent was ready: the sum of the others.
    pub guest_boot_ms: Option<u64>,
    /// From the spawn of the VMM until the kernel ran.
    pub vmm_ms: Option<u64>,
    /// From then until the agent ran.
    pub kernel_ms: Option<u64>,
    /// From then until the agent was ready.
    pub agent_ms: Option<u64>,
}

#[cfg(feature = "server")]
impl BootTiming {
    fn new(total_create_ms: Option<u64>, times: BootTimes) -> Self {
        let BootTimes {
            vmm_ms,
            kernel_ms,
            agent_ms,
        } = times;
        let sum = vmm_ms.saturating_add(kernel_ms).saturating_add(agent_ms);
        Self {
            total_create_ms,
            guest_boot_ms: Some(sum),
            vmm_ms: Some(vmm_ms),
            kernel_ms: Some(kernel_ms),
            agent_ms: Some(agent_ms),
        }
    }
}

#[cfg(feature = "server")]
impl BoxMetricsResponse {
    pub(crate) fn new(stats: BoxStats, executions: ExecutionMetrics, info: &BoxInfo) -> Self {
        let boot_timing = info
            .boot_times
            .map(|times| BootTiming::new(info.start_ms, times));
        let usage = stats.usage;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            commands_executed_total: executions.started,
            exec_errors_total: executions.start_failures,
            bytes_sent_total: executions.stdin_bytes,
            bytes_received_total: executions.stdout_bytes + executions.stderr_bytes,
            cpu_percent: usage.cpu_percent,
            cpu_time_ms: usage.cpu_time.map(millis),
            memory_bytes: usage.memory_bytes,
            guest: stats.guest.map(GuestMetrics::from),
            boot_timing,
        }
    }
}

/// The metrics of the VMM runtime, counted from its start. An older server omits the metrics that it
/// does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = RuntimeMetrics)]
#[non_exhaustive]
pub struct RuntimeMetricsResponse {
    /// Boxes created; monotonic.
    pub boxes_created_total: u64,
    /// Failed starts and failed runs of boxes; monotonic.
    pub boxes_failed_total: u64,
    /// Failures that were caused neither by the payload's exit code nor by a request that cannot be
    /// run; part of `boxes_failed_total`, monotonic.
    pub boxes_crashed_total: u64,
    /// Times that a box stopped; monotonic.
    pub boxes_stopped_total: u64,
    /// Restarts by the policies of boxes; monotonic.
    pub boxes_restarted_total: u64,
    /// Boxes that are running now.
    pub num_running_boxes: u64,
    /// Commands started in boxes besides the payloads; monotonic.
    pub total_commands_executed: u64,
    /// Commands that could not be started; monotonic.
    pub total_exec_errors: u64,
    /// Shims reaped by the reaper; monotonic.
    pub shim_reaped: u64,
    /// Shims whose exit the reaper observed but that it did not reap; monotonic. The sum of the next
    /// four.
    pub shim_reaper_vanished: u64,
    /// Shims that the reaper left to their owner; monotonic.
    pub shim_reaper_owner_reaped: u64,
    /// Shims of an earlier server, which are not children of this one; monotonic.
    pub shim_reaper_observed: u64,
    /// Shims that other code in the server reaped; monotonic.
    pub shim_reaper_foreign_waits: u64,
    /// Shims that were not found, or are not children of the server; monotonic.
    pub shim_reaper_unknown: u64,
    /// Shims that the reaper watches now.
    pub shim_reaper_registered: u64,
    /// Sweeps completed by the reaper; monotonic, and rising as long as the reaper works.
    pub shim_reaper_sweeps: u64,
    /// The time of the last sweep, in milliseconds since 1970.
    pub shim_reaper_last_sweep_at_ms: Option<i64>,
    /// Times that the worker of the reaper was replaced; monotonic.
    pub shim_reaper_respawns: u64,
    /// Whether the worker of the reaper is alive; `null` from a server that does not report it.
    pub shim_reaper_alive: Option<bool>,
}

#[cfg(feature = "server")]
impl From<RuntimeMetrics> for RuntimeMetricsResponse {
    fn from(metrics: RuntimeMetrics) -> Self {
        Self {
            boxes_created_total: metrics.boxes_created_total,
            boxes_failed_total: metrics.boxes_failed_total,
            boxes_crashed_total: metrics.boxes_crashed_total,
            boxes_stopped_total: metrics.boxes_stopped_total,
            boxes_restarted_total: metrics.boxes_restarted_total,
            num_running_boxes: metrics.num_running_boxes,
            total_commands_executed: metrics.executions.started,
            total_exec_errors: metrics.executions.start_failures,
            shim_reaped: metrics.shim_reaped,
            shim_reaper_vanished: metrics.shim_reaper_vanished,
            shim_reaper_owner_reaped: metrics.shim_reaper_owner_reaped,
            shim_reaper_observed: metrics.shim_reaper_observed,
            shim_reaper_foreign_waits: metrics.shim_reaper_foreign_waits,
            shim_reaper_unknown: metrics.shim_reaper_unknown,
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

    #[cfg(feature = "server")]
    #[test]
    fn the_boot_of_a_guest_is_the_sum_of_its_phases() {
        let times = BootTimes {
            vmm_ms: 80,
            kernel_ms: 400,
            agent_ms: 20,
        };
        let timing = BootTiming::new(Some(600), times);
        assert_eq!(timing.total_create_ms, Some(600));
        assert_eq!(
            (timing.guest_boot_ms, timing.kernel_ms),
            (Some(500), Some(400))
        );
    }
}
