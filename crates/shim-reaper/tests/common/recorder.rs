//! Metrics that record all that a reaper reports.

use std::collections::BTreeMap;
use std::sync::Mutex;

use shim_reaper::{Metrics, MetricsSink, ReaperCounter, ReaperGauge, ReaperStats};

/// The sums of what was reported, by name, and a sink that got the same reports.
#[derive(Default)]
pub struct Recorder {
    pub sink: MetricsSink,
    sums: Mutex<BTreeMap<&'static str, i64>>,
}

impl Recorder {
    pub fn sums(&self) -> BTreeMap<&'static str, i64> {
        self.sums.lock().unwrap().clone()
    }

    fn add(&self, name: &'static str, by: i64) {
        *self.sums.lock().unwrap().entry(name).or_default() += by;
    }
}

impl Metrics for Recorder {
    fn increment(&self, counter: ReaperCounter, by: u64) {
        self.sink.increment(counter, by);
        self.add(counter.name(), i64::try_from(by).unwrap());
    }

    fn adjust(&self, gauge: ReaperGauge, by: i64) {
        self.sink.adjust(gauge, by);
        self.add(gauge.name(), by);
    }
}

/// Returns what a [`Recorder`] of this reaper has recorded, without the zeros.
pub fn sums_of(stats: &ReaperStats) -> BTreeMap<&'static str, i64> {
    [
        ("shim_reaper_reaped_total", stats.reaped_total),
        ("shim_reaper_owner_reaped_total", stats.owner_reaped_total),
        ("shim_reaper_observed_total", stats.observed_total),
        ("shim_reaper_foreign_waits_total", stats.foreign_waits_total),
        ("shim_reaper_unknown_total", stats.unknown_total),
        (
            "shim_reaper_orphans_reaped_total",
            stats.orphans_reaped_total,
        ),
        ("shim_reaper_sweeps_total", stats.sweeps_completed),
        ("shim_reaper_respawns_total", stats.respawns_total),
        ("shim_reaper_registered", stats.registered),
        ("shim_reaper_without_pidfd", stats.without_pidfd),
    ]
    .into_iter()
    .filter(|(_, value)| *value != 0)
    .map(|(name, value)| (name, i64::try_from(value).unwrap()))
    .collect()
}
