use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a runtime has done and does, at one moment.
///
/// Everything counts from the opening of the runtime. What to alert on: `shim_reaper_alive` false,
/// or `shim_reaper_sweeps` not rising while `shim_reaper_registered` is above zero (the reaper is
/// not running), and any rise of `shim_reaper_respawns`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RuntimeMetrics {
    /// Boxes created; never falls.
    pub boxes_created_total: u64,
    /// Times that a box could not be started, or failed while it ran; never falls.
    pub boxes_failed_total: u64,
    /// Of these, the times that it was neither the payload that ended with a code, nor the spec
    /// that asked for what cannot be run: a signal, the end of the memory, a shim that failed or
    /// is gone; never falls.
    pub boxes_crashed_total: u64,
    /// Times that a box stopped; never falls.
    pub boxes_stopped_total: u64,
    /// Boxes that run now.
    pub num_running_boxes: u64,
    /// Shims collected by the reaper; never falls.
    pub shim_reaped: u64,
    /// Shims whose end the reaper saw but did not collect: re-attached ones, which are not its
    /// children, and any that somebody else in the process has waited for; never falls.
    pub shim_reaper_vanished: u64,
    /// Shims that the reaper watches now.
    pub shim_reaper_registered: u64,
    /// Sweeps that the reaper completed; never falls, and never stands still.
    pub shim_reaper_sweeps: u64,
    /// When the last one was, in milliseconds since 1970.
    pub shim_reaper_last_sweep_at_ms: Option<i64>,
    /// How often the reaper's worker had to be replaced; never falls.
    pub shim_reaper_respawns: u64,
    /// Whether the reaper's worker is there.
    pub shim_reaper_alive: bool,
}

/// The counters behind [`RuntimeMetrics`], shared with whoever counts.
///
/// Knows numbers only, not who raises them.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RuntimeMetricsStorage {
    /// See [`RuntimeMetrics::boxes_created_total`].
    pub boxes_created_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::boxes_failed_total`].
    pub boxes_failed_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::boxes_crashed_total`].
    pub boxes_crashed_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::boxes_stopped_total`].
    pub boxes_stopped_total: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::num_running_boxes`].
    pub num_running_boxes: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::shim_reaped`].
    pub shim_reaped: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::shim_reaper_vanished`].
    pub shim_reaper_vanished: Arc<AtomicU64>,
    /// See [`RuntimeMetrics::shim_reaper_registered`].
    pub shim_reaper_registered: Arc<AtomicU64>,
}

impl RuntimeMetricsStorage {
    /// What is stored here; the rest is at its default.
    pub fn snapshot(&self) -> RuntimeMetrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RuntimeMetrics {
            boxes_created_total: read(&self.boxes_created_total),
            boxes_failed_total: read(&self.boxes_failed_total),
            boxes_crashed_total: read(&self.boxes_crashed_total),
            boxes_stopped_total: read(&self.boxes_stopped_total),
            num_running_boxes: read(&self.num_running_boxes),
            shim_reaped: read(&self.shim_reaped),
            shim_reaper_vanished: read(&self.shim_reaper_vanished),
            shim_reaper_registered: read(&self.shim_reaper_registered),
            ..RuntimeMetrics::default()
        }
    }
}
