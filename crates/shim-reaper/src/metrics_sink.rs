use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Counters of the embedder's own that the reaper keeps up to date.
///
/// Use it to feed a metrics store that the reaper must not know; to only read the numbers,
/// [`ShimReaper::stats`](crate::ShimReaper::stats) is nearer. Several reapers may share one sink:
/// each adds its part.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shim_reaper::{MetricsSink, ShimReaper};
/// use std::sync::atomic::Ordering;
///
/// let sink = MetricsSink::default();
/// let reaper = ShimReaper::builder().metrics_sink(sink.clone()).start();
/// reaper.spawn(std::process::Command::new("true")).await?.await?;
/// assert_eq!(sink.reaped_total.load(Ordering::Relaxed), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MetricsSink {
    /// Shims that the reaper collected. Only rises.
    pub reaped_total: Arc<AtomicU64>,
    /// Shims that somebody else collected, or that were not our children. Only rises.
    pub vanished_total: Arc<AtomicU64>,
    /// Shims registered at this moment.
    pub registered_now: Arc<AtomicU64>,
}
