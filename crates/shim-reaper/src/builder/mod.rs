mod start;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::metrics::MetricsReporter;
use crate::{Metrics, MetricsSink, ShimReaper};

/// The shortest sweep interval. Shorter ones, including zero, are raised to this.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(1);

/// Longer than the life of any process, and short enough to be added to an instant.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(1 << 32);

/// Configures and starts a [`ShimReaper`]; [`ShimReaper::builder`] returns it.
///
/// | option | default |
/// |---|---|
/// | [`sweep_interval`](Self::sweep_interval) | 250 ms |
/// | [`owner_grace`](Self::owner_grace) | one sweep interval |
/// | [`shutdown_token`](Self::shutdown_token), [`shutdown_stopping_token`](Self::shutdown_stopping_token) | none |
/// | [`metrics`](Self::metrics), [`metrics_sink`](Self::metrics_sink) | none |
/// | [`pidfd`](Self::pidfd), [`early_pidfd`](Self::early_pidfd) | on |
/// | [`subreaper`](Self::subreaper), [`io_uring`](Self::io_uring) | off |
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
///     .shutdown_stopping_token(runtime_shutdown.clone(), Duration::from_secs(10))
///     .start();
///
/// runtime_shutdown.cancel();
/// assert!(reaper.shutdown().await.still_running.is_empty());
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until one of its start methods is called"]
pub struct ReaperBuilder {
    sweep_interval: Duration,
    owner_grace: Option<Duration>,
    metrics: MetricsReporter,
    shutdown_token: CancellationToken,
    /// `Some` if the token stops the shims.
    stop_grace: Option<Duration>,
    pidfd: bool,
    early_pidfd: bool,
    subreaper: bool,
    io_uring: bool,
}

impl ShimReaper {
    /// Starts a reaper with the defaults on the current tokio runtime. Use [`builder`](Self::builder) to
    /// change them, and in synchronous code.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::start();
    /// assert!(reaper.worker_alive());
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// As for [`ReaperBuilder::start`].
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Returns a builder, which configures and starts a reaper.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// assert!(reaper.worker_alive());
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> ReaperBuilder {
        ReaperBuilder::new()
    }
}

impl ReaperBuilder {
    pub(crate) fn new() -> Self {
        Self {
            sweep_interval: Duration::from_millis(250),
            owner_grace: None,
            metrics: MetricsReporter::default(),
            shutdown_token: CancellationToken::new(),
            stop_grace: None,
            pidfd: true,
            early_pidfd: true,
            subreaper: false,
            io_uring: false,
        }
    }

    /// Sets the sweep interval: 250 ms by default, at least 1 ms.
    ///
    /// Without pidfds, the interval is the longest lifetime of a zombie. With pidfds, an event reports each exit.
    /// The kernel loses none, but a forked child that shares the epoll can take one. For that case each sweep also
    /// checks 8 of the shims, in turn: of N shims, one whose event was lost is found after at most N / 8 + 1
    /// intervals.
    ///
    /// Up to 16 pidfds of ended shims stay open until the next sweep.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use std::time::Duration;
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().sweep_interval(Duration::from_secs(1)).start();
    /// # }
    /// ```
    pub fn sweep_interval(mut self, interval: Duration) -> Self {
        self.sweep_interval = interval.clamp(MIN_SWEEP_INTERVAL, MAX_DURATION);
        self
    }

    /// Sets the grace period: the time that the owner of a `Child` has to wait for a dead shim from
    /// [`register`](ShimReaper::register) before the reaper reaps it. One sweep interval by
    /// default. With zero the reaper reaps at once.
    ///
    /// Choose it longer than the owners take to call `wait`. Until it ends, a shim whose owner does not wait
    /// stays a zombie.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use std::time::Duration;
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().owner_grace(Duration::from_secs(5)).start();
    /// # }
    /// ```
    pub fn owner_grace(mut self, grace: Duration) -> Self {
        self.owner_grace = Some(grace.min(MAX_DURATION));
        self
    }

    /// Sets a receiver of what the reaper counts. It replaces the previous one, also that of
    /// [`metrics_sink`](Self::metrics_sink). None by default. [`Metrics`] shows how to write one.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use shim_reaper::{MetricsSink, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().metrics(MetricsSink::default()).start();
    /// # }
    /// ```
    pub fn metrics(mut self, metrics: impl Metrics) -> Self {
        self.metrics = MetricsReporter::new(metrics);
        self
    }

    /// Sets counters that the reaper updates in addition to its own; the same as
    /// [`metrics`](Self::metrics) with a [`MetricsSink`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use shim_reaper::{MetricsSink, ShimReaper};
    ///
    /// let sink = MetricsSink::default();
    /// let reaper = ShimReaper::builder().metrics_sink(sink.clone()).start();
    /// # }
    /// ```
    pub fn metrics_sink(self, sink: MetricsSink) -> Self {
        self.metrics(sink)
    }

    /// Sets a token whose cancellation shuts down the reaper, as
    /// [`shutdown`](ShimReaper::shutdown) does: it leaves running shims as they are, and nothing reaps
    /// them. A shutdown of the reaper does not cancel `token`.
    ///
    /// Use it for shims that outlive the daemon, and [`shutdown_stopping_token`](Self::shutdown_stopping_token)
    /// for others. In particular, do not give it a token on which tasks stop their shims: the reaper would
    /// shut down before they can.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use tokio_util::sync::CancellationToken;
    /// use shim_reaper::ShimReaper;
    ///
    /// let token = CancellationToken::new();
    /// let reaper = ShimReaper::builder().shutdown_token(token.clone()).start();
    /// token.cancel();
    /// assert!(reaper.shutdown().await.still_running.is_empty());
    /// # }
    /// ```
    pub fn shutdown_token(mut self, token: CancellationToken) -> Self {
        self.shutdown_token = token;
        self.stop_grace = None;
        self
    }

    /// Sets a token whose cancellation stops every shim and then shuts down the reaper, as
    /// [`shutdown_stopping`](ShimReaper::shutdown_stopping) does. Replaces a token from
    /// [`shutdown_token`](Self::shutdown_token). A shutdown of the reaper does not cancel `token`.
    ///
    /// Tasks may stop their shims on the same token: the reaper runs until all have ended.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use std::time::Duration;
    /// use tokio_util::sync::CancellationToken;
    /// use shim_reaper::ShimReaper;
    ///
    /// let token = CancellationToken::new();
    /// let reaper = ShimReaper::builder()
    ///     .shutdown_stopping_token(token.clone(), Duration::from_secs(10))
    ///     .start();
    /// token.cancel();
    /// assert!(reaper.shutdown().await.still_running.is_empty());
    /// # }
    /// ```
    pub fn shutdown_stopping_token(mut self, token: CancellationToken, grace: Duration) -> Self {
        self.shutdown_token = token;
        self.stop_grace = Some(grace);
        self
    }

    /// Sets whether the reaper uses pidfds where the kernel has them; true by default.
    ///
    /// Set false only to test a program for old kernels. The reaper then behaves as on a kernel before 5.3:
    /// pid and start time identify a shim, the interval sweep finds its exit, and the status is unknown if
    /// other code reaped it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().pidfd(false).start();
    /// # }
    /// ```
    pub fn pidfd(mut self, on: bool) -> Self {
        self.pidfd = on;
        self
    }

    /// Sets whether the child of a std or tokio command that [`spawn`](ShimReaper::spawn) starts opens
    /// its own pidfd before it executes the program; true by default. A [`Command`](crate::Command) of
    /// this crate does not need it: its child always has a pidfd.
    ///
    /// With true, the reaper knows the exit status however short the life of the child is and
    /// whichever code reaps it. std then starts the child with `fork` in place of `posix_spawn`: the
    /// kernel copies the page tables of this process, and the calling thread waits. The child also
    /// checks each open descriptor.
    ///
    /// With false, the reaper opens the pidfd when the child runs. If the child exits at once and a
    /// foreign wait reaps it before that, its exit status is unknown. After the first such loss, and
    /// while SIGCHLD is ignored, the reaper spawns as with true. Set false if no other
    /// code in this process waits for any child, and the cost of the fork matters:
    ///
    /// | resident memory | `fork` | `posix_spawn` |
    /// |---|---|---|
    /// | 10 MB | 0.6 ms | 0.07 ms |
    /// | 100 MB | 5 ms | 0.2 ms |
    /// | 2 GB | 76 ms | 0.3 ms |
    ///
    /// Has no effect without pidfds.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().early_pidfd(false).start();
    /// # }
    /// ```
    pub fn early_pidfd(mut self, on: bool) -> Self {
        self.early_pidfd = on;
        self
    }

    /// Sets whether this process becomes a subreaper when the reaper starts, and the reaper reaps its
    /// orphans. Off by default.
    ///
    /// The kernel makes a subreaper the parent of each descendant whose own parent exits
    /// (`PR_SET_CHILD_SUBREAPER(2const)`, Linux 3.4). Such an orphan stays a zombie when it exits, because
    /// no code in this process waits for it.
    ///
    /// Use this in a daemon whose shims leave processes behind in other process groups. For processes in the
    /// group of a shim, [`SpawnOptions::process_group`](crate::SpawnOptions::process_group) is enough. In a
    /// program that may be pid 1 of a container, prefer [`Init`](crate::init::Init), which reaps orphans in a
    /// process of its own.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().subreaper(true).start();
    /// // The shell exits before the process that it has started.
    /// reaper.spawn(Command::new("sh").args(["-c", "sleep 0.1 &"]))?;
    /// while reaper.stats().orphans_reaped_total == 0 {
    ///     tokio::time::sleep(Duration::from_millis(10)).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Children that are not registered
    ///
    /// The kernel does not record whether this process forked a child or became its parent later. The reaper
    /// treats a child that is not registered as an orphan in these cases:
    ///
    /// * The main thread forked it. The kernel gives orphans to the main thread.
    /// * The thread that forked it has exited. The kernel then gives its children to another thread.
    /// * The main thread has exited, or the kernel lacks `CONFIG_PROC_CHILDREN`. This concerns every
    ///   child.
    ///
    /// The reaper leaves such a child alone while it runs. When an interval sweep finds it dead, its owner has
    /// the [grace period](Self::owner_grace), at least one sweep interval, to wait for it. After that the
    /// reaper reaps it, and a later wait of the owner fails with `ECHILD`.
    ///
    /// If an owner may take longer, for example because it waits for its children one after another, register
    /// its children, or spawn them from a thread other than the main one that does not exit.
    ///
    /// # Cost
    ///
    /// A sweep makes one system call while no child is dead. Otherwise it reads the list of children, and
    /// checks the dead ones and up to 512 running ones; the next sweep goes on with the others.
    pub fn subreaper(mut self, on: bool) -> Self {
        self.subreaper = on;
        self
    }

    /// Sets whether the kernel reaps shims as they exit, through io_uring, on Linux 6.7 or later. Off by default.
    /// It has an effect only on a [dedicated thread](Self::start_dedicated).
    ///
    /// A zombie then lives a little shorter, because no system call of the thread is between the exit and
    /// the wait. In return, the thread does not learn the resource usage: [`ShimExit::rusage`] is `None` for
    /// shims that the kernel has reaped.
    ///
    /// The kernel reaps only shims that no other code may wait for: those from [`spawn`](ShimReaper::spawn) and
    /// [`register_child`](ShimReaper::register_child), except children of tokio and leaders of a
    /// [process group](crate::SpawnOptions::process_group). The thread reaps the others as without this
    /// option, and also all whose exit the kernel does not report in time. If io_uring is not available or
    /// fails, a warning is logged and the reaper goes on without it. `/proc/sys/kernel/io_uring_disabled`
    /// and the seccomp filters of many containers forbid io_uring.
    ///
    /// | memory of a shim | off | on |
    /// |---|---|---|
    /// | kernel | about 200 bytes | about 510 bytes |
    /// | heap | about 200 bytes | about 400 bytes |
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().io_uring(true).start_dedicated()?;
    /// let shim = reaper.spawn(Command::new("true"))?;
    /// assert!(shim.wait_blocking()?.success());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`ShimExit::rusage`]: crate::ShimExit::rusage
    pub fn io_uring(mut self, on: bool) -> Self {
        self.io_uring = on;
        self
    }
}
