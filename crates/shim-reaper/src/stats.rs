use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::metrics::{MetricsReporter, ReaperCounter, ReaperGauge};
#[cfg(feature = "serde")]
use crate::serde_time::unix_millis;

/// Counters and health of a reaper; [`ShimReaper::stats`](crate::ShimReaper::stats) returns them.
///
/// Each shim that has ended is in `reaped_total` or in `vanished_total`. The fields are read one after
/// another without a lock, so they may differ by a few events.
///
/// With the feature `serde`, the time of the latest sweep is serialized as `last_sweep_at_ms`, in
/// milliseconds since the Unix epoch.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use shim_reaper::{Command, ShimReaper};
/// # let reaper = ShimReaper::start();
///
/// reaper.spawn(Command::new("true"))?.await?;
/// let stats = reaper.stats();
/// assert!(stats.worker_alive && stats.foreign_waits_total == 0);
/// assert_eq!(stats.reaped_total + stats.vanished_total, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct ReaperStats {
    /// Number of registered shims, including zombies that are in their owner's grace period.
    pub registered: u64,
    /// Number of shims that the reaper reaped. Monotonic.
    pub reaped_total: u64,
    /// Number of shims that ended and that the reaper did not reap, for whatever reason: the sum of
    /// `owner_reaped_total`, `observed_total`, `foreign_waits_total` and `unknown_total`. Monotonic.
    pub vanished_total: u64,
    /// Number of shims from [`register`](crate::ShimReaper::register) that the reaper left to their
    /// owner, and that the owner reaped. A foreign wait for such a shim looks the same. Monotonic.
    pub owner_reaped_total: u64,
    /// Number of attached processes whose exit the reaper observed. Monotonic.
    pub observed_total: u64,
    /// Number of shims from [`spawn`](crate::ShimReaper::spawn) or
    /// [`register_child`](crate::ShimReaper::register_child) that a foreign wait reaped, or the kernel
    /// because SIGCHLD is ignored. Monotonic. If it rises, other code in this process waits for
    /// children that it does not own.
    pub foreign_waits_total: u64,
    /// Number of registrations of a pid that no process had, or whose process was not a child of
    /// this process. Monotonic. An exit does not always show it as
    /// [`ReapedBy::Unknown`](crate::ReapedBy::Unknown): the owner may have reaped the process of
    /// a pid from [`register`](crate::ShimReaper::register) before the registration.
    pub unknown_total: u64,
    /// Number of orphans that the reaper reaped: in the process groups of ended shims, and as a
    /// [subreaper](crate::ReaperBuilder::subreaper). Monotonic.
    pub orphans_reaped_total: u64,
    /// Number of interval sweeps since the start. It rises with every interval, even without exits;
    /// if it does not, the reaper is stalled.
    pub sweeps_completed: u64,
    /// End of the latest interval sweep.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "last_sweep_at_ms", with = "unix_millis")
    )]
    pub last_sweep_at: Option<SystemTime>,
    /// Whether a worker drives the reaper. False after shutdown, and while the reaper has lost its
    /// tokio runtime and either nothing is registered or the thread that replaces it cannot start.
    pub worker_alive: bool,
    /// Number of times the worker was replaced: after a panic, or by a dedicated thread after its
    /// tokio runtime was dropped. Monotonic.
    pub respawns_total: u64,
    /// Number of registered shims without a pidfd. Only the interval sweep finds their exits.
    pub without_pidfd: u64,
}

/// Result of a shutdown; [`ShimReaper::shutdown`](crate::ShimReaper::shutdown) and
/// [`shutdown_stopping`](crate::ShimReaper::shutdown_stopping) return it.
///
/// Each shim that is registered when the final drain begins is in `drained`, in `still_running` or in
/// `held_by_tracer`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use shim_reaper::{Command, ShimReaper};
/// # let reaper = ShimReaper::start();
///
/// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
/// let report = reaper.shutdown().await;
/// assert_eq!(report.still_running, [shim.id()]);
/// # shim.start_kill()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Number of shims whose exit the final drain processed.
    pub drained: u64,
    /// Number of shims that [`shutdown_stopping`](crate::ShimReaper::shutdown_stopping) stopped, and
    /// that have ended.
    pub stopped: u64,
    /// Pids of the registered shims that are still running, sorted. The reaper does not reap them.
    /// They include the children of tokio that the shutdown kills because of `kill_on_drop`: see
    /// [`register_child`](crate::ShimReaper::register_child). Also has zombies that a tracer holds, if they
    /// have no pidfd, or their status cannot be read.
    pub still_running: Vec<u32>,
    /// Pids of the shims that have exited, and whose handles have resolved, but that stay zombies because
    /// a tracer (`ptrace(2)`) has not waited for them, sorted. The reaper does not reap them.
    pub held_by_tracer: Vec<u32>,
    /// Pids of the shims that [`shutdown_stopping`](crate::ShimReaper::shutdown_stopping) sent
    /// SIGKILL, sorted.
    pub killed: Vec<u32>,
}

/// Result of [`ShimReaper::stop_all`](crate::ShimReaper::stop_all).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use shim_reaper::{Command, ShimReaper};
/// # use std::time::Duration;
/// # let reaper = ShimReaper::start();
///
/// reaper.spawn(Command::new("sleep").arg("60"))?;
/// let report = reaper.stop_all(Duration::from_secs(10)).await;
/// assert!(report.still_running.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct StopReport {
    /// Number of shims that have ended.
    pub stopped: u64,
    /// Pids of the shims that were sent SIGKILL after the grace period, or whose groups were, sorted.
    pub killed: Vec<u32>,
    /// Pids of the shims that, or whose groups, are still running, sorted: 5 seconds after the SIGKILL,
    /// or because they could not be signalled, or because a concurrent shutdown leaves them running.
    pub still_running: Vec<u32>,
}

/// The atomic counters behind [`ReaperStats`], and the [`Metrics`](crate::Metrics) of the embedder.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    registered: AtomicU64,
    reaped: AtomicU64,
    by_owner: AtomicU64,
    observed: AtomicU64,
    by_foreign_wait: AtomicU64,
    unknown: AtomicU64,
    orphans_reaped: AtomicU64,
    sweeps: AtomicU64,
    /// In nanoseconds since the Unix epoch; 0 before the first sweep.
    last_sweep_at: AtomicU64,
    respawns: AtomicU64,
    without_pidfd: AtomicU64,
    pub(crate) metrics: MetricsReporter,
}

impl Counters {
    pub(crate) fn new(metrics: MetricsReporter) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    /// Counts an event and reports it. Takes no lock, but the caller must not hold that of the
    /// directory or of a shim; see [`MetricsReporter`].
    pub(crate) fn increment(&self, counter: ReaperCounter) {
        self.count(counter);
        self.metrics.increment(counter);
    }

    /// Does what [`increment`](Self::increment) does, without the report.
    pub(crate) fn count(&self, counter: ReaperCounter) {
        let count = match counter {
            ReaperCounter::Reaped => &self.reaped,
            ReaperCounter::OwnerReaped => &self.by_owner,
            ReaperCounter::Observed => &self.observed,
            ReaperCounter::ForeignWaits => &self.by_foreign_wait,
            ReaperCounter::Unknown => &self.unknown,
            ReaperCounter::OrphansReaped => &self.orphans_reaped,
            ReaperCounter::Sweeps => &self.sweeps,
            ReaperCounter::Respawns => &self.respawns,
        };
        count.fetch_add(1, Relaxed);
    }

    /// Changes a gauge and reports that. The caller holds no lock, as for
    /// [`increment`](Self::increment).
    pub(crate) fn adjust(&self, gauge: ReaperGauge, by: i64) {
        self.change(gauge, by);
        self.metrics.adjust(gauge, by);
    }

    /// Does what [`adjust`](Self::adjust) does, without the report.
    pub(crate) fn change(&self, gauge: ReaperGauge, by: i64) {
        let value = match gauge {
            ReaperGauge::Registered => &self.registered,
            ReaperGauge::WithoutPidfd => &self.without_pidfd,
        };
        // Wraps, which subtracts if `by` is negative.
        value.fetch_add(by as u64, Relaxed);
    }

    pub(crate) fn add_sweep(&self) {
        let since_epoch = UNIX_EPOCH.elapsed().unwrap_or_default();
        let now = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        self.last_sweep_at.store(now.max(1), Relaxed);
        self.increment(ReaperCounter::Sweeps);
    }

    pub(crate) fn has_without_pidfd(&self) -> bool {
        self.without_pidfd.load(Relaxed) > 0
    }

    pub(crate) fn snapshot(&self, worker_alive: bool) -> ReaperStats {
        let last_sweep = self.last_sweep_at.load(Relaxed);
        let owner_reaped_total = self.by_owner.load(Relaxed);
        let observed_total = self.observed.load(Relaxed);
        let foreign_waits_total = self.by_foreign_wait.load(Relaxed);
        let unknown_total = self.unknown.load(Relaxed);
        ReaperStats {
            registered: self.registered.load(Relaxed),
            reaped_total: self.reaped.load(Relaxed),
            vanished_total: owner_reaped_total
                + observed_total
                + foreign_waits_total
                + unknown_total,
            owner_reaped_total,
            observed_total,
            foreign_waits_total,
            unknown_total,
            orphans_reaped_total: self.orphans_reaped.load(Relaxed),
            sweeps_completed: self.sweeps.load(Relaxed),
            last_sweep_at: (last_sweep != 0).then(|| UNIX_EPOCH + Duration::from_nanos(last_sweep)),
            worker_alive,
            respawns_total: self.respawns.load(Relaxed),
            without_pidfd: self.without_pidfd.load(Relaxed),
        }
    }
}
