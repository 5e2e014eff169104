mod register;
mod shutdown;

use std::fmt;
use std::sync::Arc;

use crate::worker::Worker;
use crate::{Exits, ReaperStats};

/// A reaper of child processes. It reaps those that are registered with it, and no others.
///
/// Clones are cheap and refer to the same reaper. A process stays registered until it has ended, even
/// if its handle, a future or every `ShimReaper` is dropped.
///
/// # Which method
///
/// | you have | use | the reaper |
/// |---|---|---|
/// | a `Command` | [`spawn`](Self::spawn) | creates the child, and reaps it when it exits |
/// | a `Child` that only the reaper waits for | [`register_child`](Self::register_child) | reaps it when it exits |
/// | a pid or pidfd whose `Child` an owner may hold | [`register`](Self::register) | reaps it if the owner does not wait for it within the grace period |
/// | a pid or pidfd that is not your child | [`attach`](Self::attach) | observes its exit, never waits for it |
///
/// Use `tokio::process` instead if one task starts a child and awaits its exit. The reaper is for
/// children that outlive the code that started them.
///
/// | at the end | children that still run | in code that cannot await |
/// |---|---|---|
/// | [`shutdown_stopping`](Self::shutdown_stopping) | are stopped and reaped | [`shutdown_stopping_sync`](Self::shutdown_stopping_sync), [`stopping_drop_guard`](Self::stopping_drop_guard) |
/// | [`shutdown`](Self::shutdown) | are left running | [`shutdown_sync`](Self::shutdown_sync), [`drop_guard`](Self::drop_guard) |
///
/// Without a shutdown, the reaper runs until every `ShimReaper` is dropped and every shim has ended.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::process::Command;
/// use shim_reaper::ShimReaper;
///
/// let reaper = ShimReaper::start();
/// let child = Command::new("true").spawn()?;
///
/// let handle = reaper.register_child(child)?;
/// assert!(handle.await?.success());
/// assert_eq!(reaper.stats().reaped_total, 1);
/// reaper.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ShimReaper {
    inner: Arc<AbandonOnDrop>,
}

/// All clones of a reaper share it, its handles do not. When it is dropped, the worker ends once
/// every shim has ended.
#[derive(Debug)]
struct AbandonOnDrop {
    worker: Arc<Worker>,
}

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.worker.abandon();
    }
}

impl ShimReaper {
    pub(crate) fn new(worker: Arc<Worker>) -> Self {
        Self {
            inner: Arc::new(AbandonOnDrop { worker }),
        }
    }

    /// Returns the counters and the health of the reaper. Takes no lock.
    ///
    /// Use it to export or log numbers. To be called for each event, implement
    /// [`Metrics`](crate::Metrics).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// reaper.spawn(Command::new("true"))?.await?;
    /// let stats = reaper.stats();
    /// assert_eq!((stats.registered, stats.reaped_total), (0, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> ReaperStats {
        self.worker()
            .shared()
            .counters
            .snapshot(self.worker().is_alive())
    }

    /// Returns whether a worker drives the reaper; false after a shutdown.
    ///
    /// If the tokio runtime that drives the reaper is dropped, a dedicated thread takes over, and
    /// [`respawns_total`](ReaperStats::respawns_total) rises. While nothing is registered, or if that
    /// thread cannot be started, this returns false, and each registration and each poll of a handle
    /// tries again.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::start();
    /// assert!(reaper.worker_alive());
    /// reaper.shutdown().await;
    /// assert!(!reaper.worker_alive());
    /// # Ok(())
    /// # }
    /// ```
    pub fn worker_alive(&self) -> bool {
        self.worker().is_alive()
    }

    /// Returns a stream of all exits from now on. It buffers unread exits without a limit; use
    /// [`exits_bounded`](Self::exits_bounded) where the reader may be slow.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use futures::StreamExt;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let mut exits = reaper.exits();
    /// let shim = reaper.spawn(Command::new("true"))?;
    /// assert_eq!(exits.next().await.map(|exit| exit.pid), Some(shim.id()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn exits(&self) -> Exits {
        let exits = self.worker().shared().subscribers.subscribe();
        self.worker().ensure_alive();
        exits
    }

    /// Returns a stream of all exits from now on that buffers up to `capacity` unread exits. When it
    /// is full, the next exit replaces the oldest one. A capacity of 0 is raised to 1.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use futures::StreamExt;
    /// use std::process::Command;
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::start();
    /// let mut exits = reaper.exits_bounded(1);
    /// reaper.spawn(Command::new("false"))?.await?;
    /// reaper.spawn(Command::new("true"))?.await?;
    ///
    /// assert_eq!(exits.dropped(), 1);
    /// assert_eq!(exits.next().await.and_then(|exit| exit.code()), Some(0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn exits_bounded(&self, capacity: usize) -> Exits {
        let exits = self
            .worker()
            .shared()
            .subscribers
            .subscribe_bounded(capacity);
        self.worker().ensure_alive();
        exits
    }

    fn worker(&self) -> &Arc<Worker> {
        &self.inner.worker
    }

    fn live_worker(&self) -> &Arc<Worker> {
        let worker = self.worker();
        worker.ensure_alive();
        worker
    }
}

impl fmt::Debug for ShimReaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShimReaper")
            .field("registered", &self.stats().registered)
            .field("closed", &self.worker().shared().is_closing())
            .finish_non_exhaustive()
    }
}
