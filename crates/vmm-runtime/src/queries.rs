//! The part of [`VmmRuntime`] that reads the state of boxes and changes nothing.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

use crate::boxes::MicroBox;
use crate::lifecycle;
use crate::process::{count_zombies, measure_usage};
use crate::{
    BoxCounts, BoxInfo, BoxUsage, ConsoleQuery, ConsoleStream, Events, ExecutionMetrics,
    GuestStats, ListOptions, RuntimeError, RuntimeMetrics, VmmRuntime, exec,
};

/// What a box uses, from [`VmmRuntime::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct BoxStats {
    /// What the host counts. For a guest, this includes the VMM.
    pub usage: BoxUsage,
    /// What the guest reports; `None` while it is paused, and for a payload that is not a guest.
    pub guest: Option<GuestStats>,
}

impl From<BoxUsage> for BoxStats {
    /// Creates the statistics of a box whose guest does not report any.
    fn from(usage: BoxUsage) -> Self {
        Self { usage, guest: None }
    }
}

/// How long reading the state of a box waits for an exit to be saved.
const OBSERVE_TIMEOUT: Duration = Duration::from_millis(100);

/// The number of boxes that a list reads at a time, at least.
const MIN_BATCH: usize = 64;

impl VmmRuntime {
    /// Returns the current state of a box. An exit appears here only after it has been saved, as
    /// with [`wait`](Self::wait) and [`events`](Self::events), so a crash of this process cannot
    /// undo it.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`].
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn info(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let bx = self.core().boxes.find(id_or_name)?;
        self.observe_exits([&bx]).await;
        Ok(bx.info())
    }

    /// Gives exits that are being saved a short time to be reported. Bounded, because a disk can
    /// hang.
    async fn observe_exits(&self, boxes: impl IntoIterator<Item = &Arc<MicroBox>>) {
        let exited: Vec<_> = boxes
            .into_iter()
            .filter(|bx| bx.has_unreported_exit())
            .cloned()
            .collect();
        // A forked child has none of the runtime's threads.
        if exited.is_empty() || !self.core().is_owner() {
            return;
        }
        // On the runtime's own thread, because the caller may not be in a tokio runtime.
        let core = Arc::clone(self.core());
        let observed = self.core().spawn(async move {
            let observe = async |bx| {
                lifecycle::observe_exit(&core, bx).await?;
                bx.end_reported().await;
                Ok::<(), RuntimeError>(())
            };
            let _ = timeout(OBSERVE_TIMEOUT, join_all(exited.iter().map(observe))).await;
        });
        let _ = observed.await;
    }

    /// Returns all boxes in the order of their creation.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn list(&self) -> Vec<BoxInfo> {
        self.list_with(&ListOptions::default()).await
    }

    /// Returns the boxes that `options` select, in their order. Without conditions, the cost depends
    /// only on the number of boxes that it returns.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn list_with(&self, options: &ListOptions) -> Vec<BoxInfo> {
        let limit = options.limit.unwrap_or(usize::MAX);
        let mut after = options.after.clone();
        let mut found = Vec::new();
        while found.len() < limit {
            let boxes = &self.core().boxes;
            let batch = boxes.slice(after.as_ref(), options.newest_first, limit.max(MIN_BATCH));
            let Some(last) = batch.last() else { break };
            after = Some(last.id().clone());
            self.observe_exits(&batch).await;
            let infos = batch.iter().map(|bx| bx.info());
            let matching = infos.filter(|info| options.is_match(info));
            found.extend(matching.take(limit - found.len()));
        }
        found
    }

    /// Returns the number of boxes by status, as [`list`](Self::list) shows them. Cheaper than a
    /// list.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn count_boxes(&self) -> BoxCounts {
        let boxes = self.core().boxes.all();
        self.observe_exits(&boxes).await;
        let mut counts = BoxCounts::default();
        for bx in &boxes {
            bx.count(&mut counts);
        }
        counts
    }

    /// Returns the output of a box, from the first byte that is kept. The output is bounded by the
    /// [console options](crate::BoxSpec::console) of the box, and a new run replaces it.
    ///
    /// If the query [follows](ConsoleQuery::following) the box, new output follows as the payload writes it, while
    /// the shim rotates the files, until the box has ended and is not restarted, is removed, or the runtime
    /// shuts down. A reader that is slower than the payload misses output that the rotation deletes. An
    /// [automatic removal](crate::BoxSpec::auto_remove) waits up to 10 s for clients that read.
    ///
    /// ```no_run
    /// # use futures::StreamExt;
    /// # use vmm_runtime::{ConsoleQuery, VmmRuntime};
    /// # async fn example(runtime: VmmRuntime) -> Result<(), Box<dyn std::error::Error>> {
    /// let query = ConsoleQuery::following().tail(10);
    /// let mut output = runtime.console("web", query).await?;
    /// while let Some(chunk) = output.next().await {
    ///     print!("{}", String::from_utf8_lossy(&chunk?));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`], [`RuntimeError::Ambiguous`], [`RuntimeError::Console`] if the last lines
    /// cannot be found, [`RuntimeError::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Reads only. Between two chunks, the stream can be polled by any task.
    pub async fn console(
        &self,
        id_or_name: &str,
        query: ConsoleQuery,
    ) -> Result<ConsoleStream, RuntimeError> {
        let bx = self.core().boxes.find(id_or_name)?;
        ConsoleStream::open(Arc::clone(self.core()), bx, query).await
    }

    /// Returns the counters of the runtime and its reaper.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn metrics(&self) -> RuntimeMetrics {
        self.core().metrics()
    }

    /// Returns the CPU time, memory and processes of a box, as the host counts them; no values if it
    /// is not running.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`], [`RuntimeError::Closed`] in a forked child.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn usage(&self, id_or_name: &str) -> Result<BoxUsage, RuntimeError> {
        let bx = self.core().boxes.find(id_or_name)?;
        let Some(shim) = bx.shim() else {
            return Ok(BoxUsage::default());
        };
        let (dir, pid, cpus) = (bx.dir().clone(), shim.pid(), bx.cpus());
        let measured = self
            .core()
            .inspect(move || measure_usage(&dir, pid, cpus))
            .await?;
        // Until its exit is known, the shim is not reaped, and its pid not reused.
        let usage = measured.ok().filter(|_| shim.is_running());
        Ok(usage.unwrap_or_default())
    }

    /// Returns what this runtime has counted of the commands in a box.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`], [`RuntimeError::Ambiguous`].
    pub fn execution_metrics(&self, id_or_name: &str) -> Result<ExecutionMetrics, RuntimeError> {
        Ok(self.core().boxes.find(id_or_name)?.executions().snapshot())
    }

    /// Returns what a box uses, as the host counts it, and what its guest reports about itself.
    ///
    /// # Errors
    ///
    /// Those of [`usage`](Self::usage); [`RuntimeError::NotRunning`]; [`RuntimeError::Exec`] if the
    /// guest cannot respond. Waits for a guest that is slow.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn stats(&self, id_or_name: &str) -> Result<BoxStats, RuntimeError> {
        if self.core().boxes.find(id_or_name)?.is_paused() {
            return Ok(self.usage(id_or_name).await?.into());
        }
        let guest = self
            .request_shim(id_or_name, |_, dir| exec::guest_stats(dir))
            .await?;
        let usage = self.usage(id_or_name).await?;
        Ok(BoxStats { usage, guest })
    }

    /// Returns the number of children of this process that have exited and are not reaped, whether
    /// they are shims or not; `None` if it cannot be determined, as on a kernel without
    /// `CONFIG_PROC_CHILDREN`. Reads the state of each child; the cost of
    /// [`shim_zombies`](RuntimeMetrics::shim_zombies) does not grow with their number.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn count_zombies(&self) -> Option<u64> {
        self.core().inspect(count_zombies).await.ok()?.ok()
    }

    /// Returns a stream of every change of every box from now on.
    pub fn events(&self) -> Events {
        self.core().events.subscribe()
    }
}
