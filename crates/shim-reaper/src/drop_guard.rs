use std::time::Duration;

use crate::ShimReaper;

/// Shuts down a reaper when it is dropped; [`ShimReaper::drop_guard`] and
/// [`ShimReaper::stopping_drop_guard`] return it.
///
/// The drop blocks its thread, inside or outside a tokio runtime, because code that unwinds or
/// returns early cannot await. Where code can await, use [`ShimReaper::shutdown`] or
/// [`ShimReaper::shutdown_stopping`], which return a report, and [`disarm`](Self::disarm) the guard.
#[derive(Debug)]
#[must_use = "the reaper shuts down when the guard is dropped"]
pub struct DropGuard {
    /// `None` once disarmed.
    reaper: Option<ShimReaper>,
    /// `Some` to stop the children first.
    grace: Option<Duration>,
}

impl ShimReaper {
    /// Returns a guard that calls [`shutdown_sync`](Self::shutdown_sync) when it is dropped: shims that
    /// still run are left running. Use [`stopping_drop_guard`](Self::stopping_drop_guard) to end them.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// let guard = reaper.drop_guard();
    /// drop(guard);
    /// assert!(!reaper.worker_alive());
    /// # Ok(())
    /// # }
    /// ```
    pub fn drop_guard(&self) -> DropGuard {
        DropGuard {
            reaper: Some(self.clone()),
            grace: None,
        }
    }

    /// Returns a guard that calls [`shutdown_stopping_sync`](Self::shutdown_stopping_sync) when it
    /// is dropped, which blocks the thread for up to `grace` and 5 seconds.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// let guard = reaper.stopping_drop_guard(Duration::from_secs(10));
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// drop(guard); // Also if the code panics, or returns early.
    /// assert_eq!(shim.wait_blocking()?.signal(), Some(15));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stopping_drop_guard(&self, grace: Duration) -> DropGuard {
        DropGuard {
            reaper: Some(self.clone()),
            grace: Some(grace),
        }
    }
}

impl DropGuard {
    /// Drops the guard without a shutdown, for example because code has awaited one.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::ShimReaper;
    /// # let reaper = ShimReaper::builder().start_dedicated()?;
    /// let guard = reaper.drop_guard();
    /// guard.disarm();
    /// assert!(reaper.worker_alive());
    /// # Ok(())
    /// # }
    /// ```
    pub fn disarm(mut self) {
        self.reaper = None;
    }
}

impl Drop for DropGuard {
    fn drop(&mut self) {
        if let Some(reaper) = self.reaper.take() {
            match self.grace {
                Some(grace) => reaper.shutdown_stopping_sync(grace),
                None => reaper.shutdown_sync(),
            };
        }
    }
}
