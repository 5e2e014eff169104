//! `Metrics`, and its implementations.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use shim_reaper::{Metrics, MetricsSink, ReaperCounter, ReaperGauge};

/// The metrics of an embedder.
struct Ignore;

impl Metrics for Ignore {
    fn increment(&self, _: ReaperCounter, _: u64) {}

    fn adjust(&self, _: ReaperGauge, _: i64) {}
}

fn metrics_can_be_shared() -> Arc<dyn Metrics> {
    fn is_metrics(_: impl Metrics) {}
    is_metrics(Arc::new(Ignore));
    Arc::new(Ignore)
}

fn sinks_are_counters(sink: MetricsSink) -> [Arc<AtomicU64>; 3] {
    [sink.reaped_total, sink.vanished_total, sink.registered_now]
}

fn counters_are_named(counter: ReaperCounter) -> [&'static str; 2] {
    match counter {
        ReaperCounter::Reaped
        | ReaperCounter::OwnerReaped
        | ReaperCounter::Observed
        | ReaperCounter::ForeignWaits
        | ReaperCounter::Unknown
        | ReaperCounter::OrphansReaped
        | ReaperCounter::Sweeps
        | ReaperCounter::Respawns => [counter.name(), counter.description()],
        _ => unreachable!("the list has all variants"),
    }
}

fn gauges_are_named(gauge: ReaperGauge) -> [&'static str; 2] {
    match gauge {
        ReaperGauge::Registered | ReaperGauge::WithoutPidfd => [gauge.name(), gauge.description()],
        _ => unreachable!("the list has all variants"),
    }
}

const COUNTERS: &[ReaperCounter] = ReaperCounter::ALL;
const GAUGES: &[ReaperGauge] = ReaperGauge::ALL;

#[cfg(feature = "metrics")]
fn the_facade_is_an_implementation() -> [Arc<dyn Metrics>; 2] {
    let facade = shim_reaper::MetricsFacade::new();
    [
        Arc::new(facade.clone()),
        Arc::new(shim_reaper::MetricsFacade::default()),
    ]
}
