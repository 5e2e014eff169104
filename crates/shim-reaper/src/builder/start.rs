use std::io;
use std::sync::Arc;

use nix::sys::prctl;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::ReaperBuilder;
use crate::ShimReaper;
use crate::core::Core;
use crate::kernel::Linux;
use crate::shared::{Shared, StopRequest};
use crate::stats::Counters;
use crate::worker::Worker;

impl ReaperBuilder {
    /// Starts the reaper as a task of the current tokio runtime.
    ///
    /// A current-thread runtime drives the reaper only while a thread blocks on that runtime. If
    /// this is not always so, use [`start_dedicated`](Self::start_dedicated). If the tokio runtime
    /// is dropped while the reaper is in use, a dedicated thread takes over.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().start();
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime, as [`tokio::spawn`] does, and in one without time and I/O
    /// drivers. In synchronous code use [`start_dedicated`](Self::start_dedicated).
    pub fn start(self) -> ShimReaper {
        let runtime = Handle::current();
        self.start_on(&runtime)
    }

    /// Starts the reaper as a task of the given tokio runtime. Use it outside of that runtime, for example
    /// before `block_on`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let runtime = tokio::runtime::Runtime::new()?;
    /// let reaper = ShimReaper::builder().start_on(runtime.handle());
    /// let shim = reaper.spawn(Command::new("true"))?;
    /// assert!(runtime.block_on(shim)?.success());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Panics if that tokio runtime has no time or I/O driver.
    pub fn start_on(self, runtime: &Handle) -> ShimReaper {
        let subreaper = self.subreaper;
        let reaper = ShimReaper::new(Worker::start_on(self.into_core(), runtime));
        become_subreaper(subreaper);
        reaper
    }

    /// Starts the reaper on a dedicated thread, without a tokio runtime.
    ///
    /// Use it in synchronous code, and where shims must be reaped even while every worker thread of the
    /// tokio runtime is blocked. The thread reaps a zombie sooner than a task can, but a task that awaits
    /// the shim wakes later, because the thread has to wake its tokio runtime.
    ///
    /// The thread ends when the reaper shuts down, or when the last [`ShimReaper`] is dropped and
    /// every shim has ended.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// let shim = reaper.spawn(Command::new("true"))?;
    /// assert!(shim.wait_blocking()?.success());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the thread or its descriptors cannot be created.
    pub fn start_dedicated(self) -> io::Result<ShimReaper> {
        let subreaper = self.subreaper;
        let reaper = Worker::start_dedicated(self.into_core()).map(ShimReaper::new)?;
        become_subreaper(subreaper);
        Ok(reaper)
    }

    fn into_core(self) -> Arc<Core<Linux>> {
        let (token, stop_request) = match self.stop_grace {
            None => (self.shutdown_token.child_token(), None),
            Some(grace) => {
                let token = self.shutdown_token;
                (CancellationToken::new(), Some(StopRequest { token, grace }))
            }
        };
        let mut shared = Shared::new(
            Linux::new(self.pidfd, self.io_uring),
            Counters::new(self.metrics),
            token,
            self.sweep_interval,
            self.owner_grace.unwrap_or(self.sweep_interval),
            self.early_pidfd,
            stop_request,
        );
        shared.reap_all_orphans = self.subreaper;
        Arc::new(Core::new(shared))
    }
}

/// Called once the worker has started: without it, nothing would reap the orphans.
fn become_subreaper(on: bool) {
    if on {
        if let Err(error) = prctl::set_child_subreaper(true) {
            tracing::warn!(%error, "cannot become a subreaper; orphans go to another process");
        }
    }
}
