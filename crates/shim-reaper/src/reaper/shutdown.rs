use std::time::Duration;

use super::ShimReaper;
use crate::{ShutdownReport, StopReport, stop};

impl ShimReaper {
    /// Stops every registered child: sends SIGTERM to all, and SIGCONT in case they are stopped, waits
    /// for up to `grace`, sends SIGKILL to those that still run, and waits for up to 5 seconds for these.
    /// Returns a report.
    ///
    /// A shim is stopped with its [group](crate::ShimHandle::send_group_signal): it counts as running
    /// until the group has no process but zombies. The groups of shims that have ended before are left
    /// alone.
    ///
    /// Attached processes, and children that are registered later, get no signal. The reaper continues to
    /// run, and the handles resolve to the exits. To refuse new shims too, use
    /// [`shutdown_stopping`](Self::shutdown_stopping).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    ///
    /// let report = reaper.stop_all(Duration::from_secs(10)).await;
    /// assert_eq!((report.stopped, report.killed.len()), (1, 0));
    /// assert_eq!(shim.await?.signal(), Some(15));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Once the future has been polled, a thread does all this, even if the future is dropped. If no
    /// thread can be started, the future blocks the calling thread.
    pub async fn stop_all(&self, grace: Duration) -> StopReport {
        stop::stop_all_on_thread(self.worker().core(), grace).await
    }

    /// Stops every registered child like [`stop_all`](Self::stop_all), for code that cannot await,
    /// inside or outside a tokio runtime. It blocks, and does not depend on the progress of any task
    /// or thread.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// reaper.spawn(Command::new("sleep").arg("60"))?;
    /// assert_eq!(reaper.stop_all_sync(Duration::from_secs(10)).stopped, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop_all_sync(&self, grace: Duration) -> StopReport {
        stop::stop_all(self.worker().core(), grace)
    }

    /// Shuts down the reaper, and returns a report of the shims that are still running.
    ///
    /// The reaper refuses new shims and reaps every registered shim that has exited, even in a
    /// grace period. The handles of the others resolve to [`ReaperClosed`](crate::ReaperClosed);
    /// their processes keep running, and nothing reaps them, except [children of
    /// tokio](Self::register_child), which it returns to tokio. To end them too, use
    /// [`shutdown_stopping`](Self::shutdown_stopping). If a stopping shutdown has begun, or its token
    /// is cancelled, this waits for it.
    ///
    /// The shutdown takes milliseconds, whatever the sweep interval. If shims have been sent
    /// SIGKILL, through their handles or by `kill_on_drop`, it waits for up to 5 seconds until they
    /// have exited, and reaps them. Every caller gets the same report.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ReaperClosed, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    ///
    /// let report = reaper.shutdown().await;
    /// assert_eq!(report.still_running, [shim.id()]);
    /// assert_eq!(shim.wait().await, Err(ReaperClosed));
    /// shim.start_kill()?; // The handle can still signal it.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Once the future has been polled, the shutdown continues even if the future is dropped.
    pub async fn shutdown(&self) -> ShutdownReport {
        stop::shutdown_on_thread(self.worker().core()).await
    }

    /// Shuts down the reaper like [`shutdown`](Self::shutdown), for code that cannot await, such as
    /// a `Drop` implementation or an `atexit` handler, inside or outside a tokio runtime. It does not
    /// depend on the progress of any task or thread.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// reaper.spawn(Command::new("sleep").arg("60"))?.start_kill()?;
    /// assert!(reaper.shutdown_sync().still_running.is_empty()); // It is reaped.
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_sync(&self) -> ShutdownReport {
        stop::shutdown(self.worker().core())
    }

    /// Stops every registered child like [`stop_all`](Self::stop_all), and then shuts down the
    /// reaper.
    ///
    /// The reaper refuses new shims from the first poll on. It reaps the children as they exit. Their
    /// handles resolve to the exits, and so does [`stop`](crate::ShimHandle::stop) in a task that calls it
    /// in the meantime. The report lists as still running the attached processes, and the children that did
    /// not exit within 5 seconds after the SIGKILL.
    ///
    /// If several stopping shutdowns overlap, the first sends SIGTERM, and the shortest grace period counts.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let handle = reaper.spawn(Command::new("sleep").arg("60"))?;
    ///
    /// let report = reaper.shutdown_stopping(Duration::from_secs(10)).await;
    /// assert!(report.killed.is_empty() && report.still_running.is_empty());
    /// assert_eq!(handle.await?.signal(), Some(15));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// As for [`stop_all`](Self::stop_all).
    pub async fn shutdown_stopping(&self, grace: Duration) -> ShutdownReport {
        stop::shutdown_stopping_on_thread(self.worker().core(), grace).await
    }

    /// Stops every registered child and shuts down the reaper like
    /// [`shutdown_stopping`](Self::shutdown_stopping), for code that cannot await. It blocks, and does
    /// not depend on the progress of any task or thread.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// reaper.shutdown_stopping_sync(Duration::from_secs(10));
    /// assert!(!shim.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_stopping_sync(&self, grace: Duration) -> ShutdownReport {
        stop::shutdown_stopping(self.worker().core(), grace)
    }
}
