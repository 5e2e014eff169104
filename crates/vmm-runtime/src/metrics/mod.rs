mod executions;
mod histogram;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use vmm_protocol::BootTimes;

pub use self::executions::ExecutionMetrics;
pub(crate) use self::executions::{ExecutionCounters, RunningExecution};
use self::histogram::AtomicHistogram;
pub use self::histogram::DurationHistogram;

/// The counters of a VMM runtime at one moment.
///
/// All totals count from the opening of the runtime and never fall. Alert if `shim_reaper_alive` is
/// false, if `shim_reaper_sweeps` does not rise while `shim_reaper_registered` is above zero (the
/// reaper is not running), and on any rise of `shim_reaper_respawns` or `shim_reaper_foreign_waits`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RuntimeMetrics {
    /// The number of boxes created.
    pub boxes_created_total: u64,
    /// The number of times that a box could not be started, or failed while running.
    pub boxes_failed_total: u64,
    /// The number of these failures that were crashes: a signal, an out-of-memory kill, a shim that
    /// failed or disappeared. A payload that exits with a code, or a spec that cannot be run, is
    /// not a crash.
    pub boxes_crashed_total: u64,
    /// The number of runs that failed because a helper process of the payload ended.
    pub helper_failures_total: u64,
    /// The number of times that a box stopped.
    pub boxes_stopped_total: u64,
    /// The number of restarts by the policies of boxes.
    pub boxes_restarted_total: u64,
    /// The number of boxes that are running.
    pub num_running_boxes: u64,
    /// How long the starts of boxes took, from the start of the shim until the payload was ready.
    pub box_starts: DurationHistogram,
    /// How long the phases of these starts took for guests with an agent. A guest reports the times
    /// of its kernel and its agent itself.
    pub guest_boots: GuestBootMetrics,
    /// What was counted of the commands in all boxes.
    pub executions: ExecutionMetrics,
    /// The number of shims that the reaper reaped.
    pub shim_reaped: u64,
    /// The number of shims whose exit the reaper saw but did not reap: re-attached shims, which are
    /// not its children, and shims that a foreign wait reaped.
    pub shim_reaper_vanished: u64,
    /// The number of these that the reaper left to the owner of their `Child`.
    pub shim_reaper_owner_reaped: u64,
    /// The number of these that were re-attached shims.
    pub shim_reaper_observed: u64,
    /// The number of these that a foreign wait in this process reaped.
    pub shim_reaper_foreign_waits: u64,
    /// The number of these that were not found, or are not children of this process.
    pub shim_reaper_unknown: u64,
    /// The number of shims that the reaper watches, without those that wait for a box.
    pub shim_reaper_registered: u64,
    /// The number of shims that wait for a box, see
    /// [`RuntimeOptions::warm_shims`](crate::RuntimeOptions::warm_shims).
    pub warm_shims: u64,
    /// The number of shims that were to take a box and had ended, or hung. Another shim was started in
    /// place of each.
    pub warm_shim_failures_total: u64,
    /// The number of shims that have exited and are not reaped. Stays above zero only if the reaper
    /// does not run.
    pub shim_zombies: u64,
    /// The number of sweeps that the reaper completed. Rises as long as the reaper runs.
    pub shim_reaper_sweeps: u64,
    /// The time of the last sweep, in milliseconds since 1970.
    pub shim_reaper_last_sweep_at_ms: Option<i64>,
    /// The number of times that the reaper's worker was replaced.
    pub shim_reaper_respawns: u64,
    /// Whether the reaper's worker is alive.
    pub shim_reaper_alive: bool,
}

/// The [`BootTimes`] of guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GuestBootMetrics {
    /// [`BootTimes::vmm_ms`].
    pub vmm: DurationHistogram,
    /// [`BootTimes::kernel_ms`].
    pub kernel: DurationHistogram,
    /// [`BootTimes::agent_ms`].
    pub agent: DurationHistogram,
}

/// The shared counters behind [`RuntimeMetrics`].
///
/// Clones share the counters. Each component increments its own; this type does not know them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuntimeMetricsStorage {
    /// See [`RuntimeMetrics::boxes_created_total`].
    pub(crate) boxes_created_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::boxes_failed_total`].
    pub(crate) boxes_failed_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::boxes_crashed_total`].
    pub(crate) boxes_crashed_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::helper_failures_total`].
    pub(crate) helper_failures_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::boxes_stopped_total`].
    pub(crate) boxes_stopped_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::boxes_restarted_total`].
    pub(crate) boxes_restarted_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::num_running_boxes`].
    pub(crate) num_running_boxes: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::box_starts`] and [`RuntimeMetrics::guest_boots`].
    boots: Arc<BootCounters>,
    /// See [`RuntimeMetrics::executions`].
    pub(crate) executions: Arc<ExecutionCounters>,
    /// See [`RuntimeMetrics::warm_shim_failures_total`].
    pub(crate) warm_shim_failures_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::shim_reaped`].
    pub(crate) shim_reaped: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::shim_reaper_vanished`].
    pub(crate) shim_reaper_vanished: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::shim_reaper_registered`].
    pub(crate) shim_reaper_registered: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct BootCounters {
    starts: AtomicHistogram,
    vmm: AtomicHistogram,
    kernel: AtomicHistogram,
    agent: AtomicHistogram,
}

impl RuntimeMetricsStorage {
    /// Counts a start, and the boot of its guest.
    pub(crate) fn observe_start(&self, duration: Duration, boot: Option<BootTimes>) {
        self.boots.starts.observe(duration);
        if let Some(boot) = boot {
            self.boots.vmm.observe(Duration::from_millis(boot.vmm_ms));
            self.boots
                .kernel
                .observe(Duration::from_millis(boot.kernel_ms));
            self.boots
                .agent
                .observe(Duration::from_millis(boot.agent_ms));
        }
    }

    /// Returns the stored counters. The fields of [`RuntimeMetrics`] that are not stored here have
    /// their default values.
    pub(crate) fn snapshot(&self) -> RuntimeMetrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RuntimeMetrics {
            boxes_created_total: read(&self.boxes_created_total),
            boxes_failed_total: read(&self.boxes_failed_total),
            boxes_crashed_total: read(&self.boxes_crashed_total),
            helper_failures_total: read(&self.helper_failures_total),
            boxes_stopped_total: read(&self.boxes_stopped_total),
            boxes_restarted_total: read(&self.boxes_restarted_total),
            num_running_boxes: read(&self.num_running_boxes),
            box_starts: self.boots.starts.snapshot(),
            guest_boots: GuestBootMetrics {
                vmm: self.boots.vmm.snapshot(),
                kernel: self.boots.kernel.snapshot(),
                agent: self.boots.agent.snapshot(),
            },
            executions: self.executions.snapshot(),
            warm_shim_failures_total: read(&self.warm_shim_failures_total),
            shim_reaped: read(&self.shim_reaped),
            shim_reaper_vanished: read(&self.shim_reaper_vanished),
            shim_reaper_registered: read(&self.shim_reaper_registered),
            ..RuntimeMetrics::default()
        }
    }
}
