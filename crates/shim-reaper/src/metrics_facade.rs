use ::metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use crate::{Metrics, ReaperCounter, ReaperGauge};

/// [`Metrics`] that report to the global recorder of the crate [`metrics`](::metrics).
///
/// The recorder gets the counters and gauges with the names and descriptions of [`ReaperCounter`] and
/// [`ReaperGauge`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use shim_reaper::{MetricsFacade, ShimReaper};
///
/// // Install a recorder first.
/// let reaper = ShimReaper::builder().metrics(MetricsFacade::new()).start();
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MetricsFacade {
    // In the order of `ALL`, which is that of the variants.
    counters: Vec<Counter>,
    gauges: Vec<Gauge>,
}

impl MetricsFacade {
    /// Describes all metrics to the global recorder, and registers them. Install the recorder first:
    /// a recorder that is installed later receives nothing.
    ///
    /// ```
    /// # use shim_reaper::{MetricsFacade, ShimReaper};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let metrics = MetricsFacade::new();
    /// let reaper = ShimReaper::builder().metrics(metrics).start();
    /// # }
    /// ```
    pub fn new() -> Self {
        for counter in ReaperCounter::ALL {
            describe_counter!(counter.name(), counter.description());
        }
        for gauge in ReaperGauge::ALL {
            describe_gauge!(gauge.name(), gauge.description());
        }
        Self {
            counters: ReaperCounter::ALL
                .iter()
                .map(|counter| counter!(counter.name()))
                .collect(),
            gauges: ReaperGauge::ALL
                .iter()
                .map(|gauge| gauge!(gauge.name()))
                .collect(),
        }
    }
}

impl Default for MetricsFacade {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics for MetricsFacade {
    fn increment(&self, counter: ReaperCounter, by: u64) {
        if let Some(counter) = self.counters.get(counter as usize) {
            counter.increment(by);
        }
    }

    fn adjust(&self, gauge: ReaperGauge, by: i64) {
        if let Some(gauge) = self.gauges.get(gauge as usize) {
            gauge.increment(by as f64);
        }
    }
}
