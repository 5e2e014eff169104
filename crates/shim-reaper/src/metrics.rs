use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::panic_payload::drop_panic_payload;

/// A receiver of what a reaper counts, to feed a metrics system.
///
/// [`ReaperBuilder::metrics`](crate::ReaperBuilder::metrics) installs one. To read the numbers only,
/// [`ShimReaper::stats`](crate::ShimReaper::stats) is simpler. Several reapers may share a receiver,
/// for example in an `Arc`: they report changes, so its numbers are their sums.
///
/// # Calls
///
/// The reaper calls a method for each event, on the thread that registers or reaps the shim. The
/// methods delay the reaper, so they should only add numbers. They may call the reaper, because it
/// holds no lock that such a call needs, but must not wait for an exit or a shutdown. The reaper
/// catches and logs their panics.
///
/// The reaper reports a shim before it registers it, and withdraws the report if the registration
/// fails or finds the shim registered. It reports that it reaped a shim before the handles resolve,
/// unless they have resolved because the shim was first left to its owner.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shim_reaper::{Metrics, ReaperCounter, ReaperGauge, ShimReaper};
/// use std::process::Command;
///
/// struct Printer;
///
/// impl Metrics for Printer {
///     fn increment(&self, counter: ReaperCounter, by: u64) {
///         println!("{} +{by}", counter.name());
///     }
///
///     fn adjust(&self, gauge: ReaperGauge, by: i64) {
///         println!("{} {by:+}", gauge.name());
///     }
/// }
///
/// let reaper = ShimReaper::builder().metrics(Printer).start();
/// reaper.spawn(Command::new("true"))?.await?;
/// # Ok(())
/// # }
/// ```
pub trait Metrics: Send + Sync + 'static {
    /// Adds `by` to a counter.
    fn increment(&self, counter: ReaperCounter, by: u64);

    /// Adds `by`, which may be negative, to a gauge.
    fn adjust(&self, gauge: ReaperGauge, by: i64);
}

impl<M: Metrics + ?Sized> Metrics for Arc<M> {
    fn increment(&self, counter: ReaperCounter, by: u64) {
        (**self).increment(counter, by);
    }

    fn adjust(&self, gauge: ReaperGauge, by: i64) {
        (**self).adjust(gauge, by);
    }
}

/// A number of a reaper that only rises; [`Metrics`] receives its changes.
///
/// ```
/// use shim_reaper::ReaperCounter;
///
/// assert_eq!(ReaperCounter::Reaped.name(), "shim_reaper_reaped_total");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReaperCounter {
    /// See [`ReaperStats::reaped_total`](crate::ReaperStats::reaped_total).
    Reaped,
    /// See [`ReaperStats::owner_reaped_total`](crate::ReaperStats::owner_reaped_total).
    OwnerReaped,
    /// See [`ReaperStats::observed_total`](crate::ReaperStats::observed_total).
    Observed,
    /// See [`ReaperStats::foreign_waits_total`](crate::ReaperStats::foreign_waits_total).
    ForeignWaits,
    /// See [`ReaperStats::unknown_total`](crate::ReaperStats::unknown_total).
    Unknown,
    /// See [`ReaperStats::orphans_reaped_total`](crate::ReaperStats::orphans_reaped_total).
    OrphansReaped,
    /// See [`ReaperStats::sweeps_completed`](crate::ReaperStats::sweeps_completed).
    Sweeps,
    /// See [`ReaperStats::respawns_total`](crate::ReaperStats::respawns_total).
    Respawns,
}

impl ReaperCounter {
    /// All counters, for a metrics system in which they are registered beforehand.
    pub const ALL: &[Self] = &[
        Self::Reaped,
        Self::OwnerReaped,
        Self::Observed,
        Self::ForeignWaits,
        Self::Unknown,
        Self::OrphansReaped,
        Self::Sweeps,
        Self::Respawns,
    ];

    /// Returns a name that follows the conventions of Prometheus, such as
    /// `shim_reaper_reaped_total`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reaped => "shim_reaper_reaped_total",
            Self::OwnerReaped => "shim_reaper_owner_reaped_total",
            Self::Observed => "shim_reaper_observed_total",
            Self::ForeignWaits => "shim_reaper_foreign_waits_total",
            Self::Unknown => "shim_reaper_unknown_total",
            Self::OrphansReaped => "shim_reaper_orphans_reaped_total",
            Self::Sweeps => "shim_reaper_sweeps_total",
            Self::Respawns => "shim_reaper_respawns_total",
        }
    }

    /// Returns a sentence for the users of the metrics system.
    ///
    /// ```
    /// # use shim_reaper::ReaperCounter;
    /// for counter in ReaperCounter::ALL {
    ///     println!("# HELP {} {}", counter.name(), counter.description());
    /// }
    /// ```
    pub const fn description(self) -> &'static str {
        match self {
            Self::Reaped => "Shims reaped by the reaper.",
            Self::OwnerReaped => {
                "Shims that the reaper left to their owner, and that the owner reaped."
            }
            Self::Observed => "Attached processes whose exit the reaper observed.",
            Self::ForeignWaits => "Shims that other code in the process reaped.",
            Self::Unknown => "Pids that were not found, or are not children of the process.",
            Self::OrphansReaped => {
                "Orphans reaped in the process groups of ended shims, or as a subreaper."
            }
            Self::Sweeps => "Sweeps completed by the reaper; rises as long as it works.",
            Self::Respawns => "Times that the worker of the reaper was replaced.",
        }
    }
}

/// A number of a reaper that rises and falls; [`Metrics`] receives its changes.
///
/// ```
/// use shim_reaper::ReaperGauge;
///
/// assert_eq!(ReaperGauge::Registered.name(), "shim_reaper_registered");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReaperGauge {
    /// See [`ReaperStats::registered`](crate::ReaperStats::registered).
    Registered,
    /// See [`ReaperStats::without_pidfd`](crate::ReaperStats::without_pidfd).
    WithoutPidfd,
}

impl ReaperGauge {
    /// All gauges, for a metrics system in which they are registered beforehand.
    pub const ALL: &[Self] = &[Self::Registered, Self::WithoutPidfd];

    /// Returns a name that follows the conventions of Prometheus, such as `shim_reaper_registered`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registered => "shim_reaper_registered",
            Self::WithoutPidfd => "shim_reaper_without_pidfd",
        }
    }

    /// Returns a sentence for the users of the metrics system.
    ///
    /// ```
    /// # use shim_reaper::ReaperGauge;
    /// for gauge in ReaperGauge::ALL {
    ///     println!("# HELP {} {}", gauge.name(), gauge.description());
    /// }
    /// ```
    pub const fn description(self) -> &'static str {
        match self {
            Self::Registered => "Shims that the reaper watches now.",
            Self::WithoutPidfd => {
                "Registered shims without a pidfd; only the interval sweep finds their exits."
            }
        }
    }
}

/// [`Metrics`] in three atomic counters, which the program can share with its metrics registry. To
/// receive all that the reaper counts, implement [`Metrics`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shim_reaper::{MetricsSink, ShimReaper};
/// use std::sync::atomic::Ordering;
///
/// let sink = MetricsSink::default();
/// let reaper = ShimReaper::builder().metrics_sink(sink.clone()).start();
/// reaper.spawn(std::process::Command::new("true"))?.await?;
/// assert_eq!(sink.reaped_total.load(Ordering::Relaxed), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MetricsSink {
    /// Number of shims that the reaper reaped. Monotonic.
    pub reaped_total: Arc<AtomicU64>,
    /// Number of shims that ended and that the reaper did not reap, as in
    /// [`ReaperStats::vanished_total`](crate::ReaperStats::vanished_total). Monotonic.
    pub vanished_total: Arc<AtomicU64>,
    /// Number of registered shims.
    pub registered_now: Arc<AtomicU64>,
}

impl Metrics for MetricsSink {
    fn increment(&self, counter: ReaperCounter, by: u64) {
        use ReaperCounter::{ForeignWaits, Observed, OwnerReaped, Reaped, Unknown};
        match counter {
            Reaped => self.reaped_total.fetch_add(by, Relaxed),
            OwnerReaped | Observed | ForeignWaits | Unknown => {
                self.vanished_total.fetch_add(by, Relaxed)
            }
            _ => 0,
        };
    }

    fn adjust(&self, gauge: ReaperGauge, by: i64) {
        if gauge == ReaperGauge::Registered {
            // Wraps, which subtracts if `by` is negative.
            self.registered_now.fetch_add(by as u64, Relaxed);
        }
    }
}

/// Calls the [`Metrics`] of the embedder, if there are any.
///
/// The caller must not hold the lock of the directory or of a shim, because the embedder may call the
/// reaper.
#[derive(Clone, Default)]
pub(crate) struct MetricsReporter {
    metrics: Option<Arc<dyn Metrics>>,
    /// The number of panics that have not been logged.
    panics: Arc<AtomicU64>,
}

impl MetricsReporter {
    pub(crate) fn new(metrics: impl Metrics) -> Self {
        Self {
            metrics: Some(Arc::new(metrics)),
            panics: Arc::default(),
        }
    }

    pub(crate) fn increment(&self, counter: ReaperCounter) {
        self.call(|metrics| metrics.increment(counter, 1));
    }

    pub(crate) fn adjust(&self, gauge: ReaperGauge, by: i64) {
        self.call(|metrics| metrics.adjust(gauge, by));
    }

    /// Reports a registration before the worker can report its end.
    pub(crate) fn begin_registration(&self) -> Registration<'_> {
        self.adjust(ReaperGauge::Registered, 1);
        Registration {
            reporter: Some(self),
            without_pidfd: false,
        }
    }

    /// Logs the panics since the last call. The caller must not hold a lock.
    pub(crate) fn log_panics(&self) {
        if self.panics.load(Relaxed) > 0 {
            let events = self.panics.swap(0, Relaxed);
            tracing::error!(
                events,
                "the metrics of the reaper panicked; events are missing in them"
            );
        }
    }

    fn call(&self, call: impl FnOnce(&dyn Metrics)) {
        let Some(metrics) = &self.metrics else {
            return;
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| call(&**metrics))) {
            drop_panic_payload(payload);
            self.panics.fetch_add(1, Relaxed);
        }
    }
}

impl fmt::Debug for MetricsReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MetricsReporter").finish_non_exhaustive()
    }
}

/// A reported registration. Dropping it withdraws the report.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    /// `None` once complete.
    reporter: Option<&'a MetricsReporter>,
    without_pidfd: bool,
}

impl Registration<'_> {
    /// Reports that the shim has no pidfd.
    pub(crate) fn add_without_pidfd(&mut self) {
        if let (Some(reporter), false) = (self.reporter, self.without_pidfd) {
            self.without_pidfd = true;
            reporter.adjust(ReaperGauge::WithoutPidfd, 1);
        }
    }

    pub(crate) fn complete(mut self) {
        self.reporter = None;
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        if let Some(reporter) = self.reporter {
            if self.without_pidfd {
                reporter.adjust(ReaperGauge::WithoutPidfd, -1);
            }
            reporter.adjust(ReaperGauge::Registered, -1);
        }
    }
}
