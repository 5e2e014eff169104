use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::counters::Counters;
use crate::intake::Intake;
use crate::kernel::Linux;
use crate::worker::Worker;
use crate::{MetricsSink, ShimReaper};

/// The shortest sweep interval; anything below, zero included, is taken as this.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// Longer than any process lives, and short enough to be added to an instant.
const MAX_DURATION: Duration = Duration::from_secs(1 << 32);

/// Settings of a [`ShimReaper`]; [`ShimReaper::builder`] makes one.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
/// use shim_reaper::ShimReaper;
/// use tokio_util::sync::CancellationToken;
///
/// let runtime_shutdown = CancellationToken::new();
/// let reaper = ShimReaper::builder()
///     .sweep_interval(Duration::from_millis(100))
///     .shutdown_token(runtime_shutdown.clone())
///     .start();
///
/// runtime_shutdown.cancel();
/// assert!(reaper.shutdown().await.still_running.is_empty());
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder starts nothing until one of its start methods is called"]
pub struct ReaperBuilder {
    sweep_interval: Duration,
    owner_grace: Option<Duration>,
    metrics_sink: MetricsSink,
    shutdown_token: CancellationToken,
    pidfd: bool,
}

impl ReaperBuilder {
    pub(crate) fn new() -> Self {
        Self {
            sweep_interval: Duration::from_millis(250),
            owner_grace: None,
            metrics_sink: MetricsSink::default(),
            shutdown_token: CancellationToken::new(),
            pidfd: true,
        }
    }

    /// How often to sweep, 250 ms by default and 1 ms at the least. With pidfds it is a safety
    /// net and costs next to nothing; without, it is how long a zombie may stay.
    pub fn sweep_interval(mut self, interval: Duration) -> Self {
        self.sweep_interval = interval.clamp(MIN_INTERVAL, MAX_DURATION);
        self
    }

    /// How long a dead shim from [`register`](ShimReaper::register) is left to whoever holds its
    /// `Child`; one sweep interval by default. With zero the reaper collects at once.
    pub fn owner_grace(mut self, grace: Duration) -> Self {
        self.owner_grace = Some(grace.min(MAX_DURATION));
        self
    }

    /// Counters to keep up to date beside the reaper's own.
    pub fn metrics_sink(mut self, sink: MetricsSink) -> Self {
        self.metrics_sink = sink;
        self
    }

    /// Cancelling `token` shuts the reaper down, as [`shutdown`](ShimReaper::shutdown) does.
    /// Shutting the reaper down does not cancel `token`.
    pub fn shutdown_token(mut self, token: CancellationToken) -> Self {
        self.shutdown_token = token;
        self
    }

    /// Whether to use pidfds where the kernel has them; true by default. With false it behaves as
    /// on a kernel before 5.3: a shim is identified by pid and start time, its death is found by
    /// the interval sweep, and an exit that somebody else collected cannot be told any more.
    pub fn pidfd(mut self, on: bool) -> Self {
        self.pidfd = on;
        self
    }

    /// Starts the reaper as a task of the current tokio runtime.
    ///
    /// A current-thread runtime drives it only while something blocks on that runtime;
    /// [`start_dedicated`](Self::start_dedicated) does not depend on that. When the runtime is
    /// dropped while the reaper is still in use, a dedicated thread takes over.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, as [`tokio::spawn`] does, or in one without its time and I/O
    /// drivers. Synchronous code wants [`start_dedicated`](Self::start_dedicated).
    pub fn start(self) -> ShimReaper {
        let runtime = Handle::current();
        self.start_on(&runtime)
    }

    /// Starts the reaper as a task of another tokio runtime.
    ///
    /// # Panics
    ///
    /// If that runtime has no time or I/O driver.
    pub fn start_on(self, runtime: &Handle) -> ShimReaper {
        ShimReaper::new(Worker::start_on(self.into_core(), runtime))
    }

    /// Starts the reaper on a thread and runtime of its own. For synchronous callers, and where
    /// shims must be collected even while every worker of the caller's runtime is blocked. Each
    /// exit then costs a switch to that thread and back.
    ///
    /// The thread ends with the reaper's shutdown, or when the last [`ShimReaper`] is dropped and
    /// every shim has ended.
    ///
    /// # Errors
    ///
    /// If the thread or its runtime cannot be made.
    pub fn start_dedicated(self) -> io::Result<ShimReaper> {
        Worker::start_dedicated(self.into_core()).map(ShimReaper::new)
    }

    fn into_core(self) -> Arc<Core<Linux>> {
        Arc::new(Core::new(Intake::new(
            Linux::new(self.pidfd),
            Counters::new(self.metrics_sink),
            self.shutdown_token.child_token(),
            self.sweep_interval,
            self.owner_grace.unwrap_or(self.sweep_interval),
        )))
    }
}
