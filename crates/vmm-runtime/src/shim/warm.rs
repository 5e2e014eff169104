use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::join_all;
use shim_reaper::ShimReaper;

use super::ShimProgram;
use super::process::ShimProcess;

/// The warm shims of a runtime: they have started and wait for a box.
///
/// A start takes one, and the runtime then replaces it. A warm shim that has died is dropped when a
/// start would take it, and is not replaced before: a shim program that fails is not started again
/// and again.
#[derive(Debug)]
pub(crate) struct WarmShims {
    reaper: ShimReaper,
    program: ShimProgram,
    /// The directory of the box directories.
    boxes: PathBuf,
    target: usize,
    /// The oldest first. `None` after the runtime has closed.
    waiting: Mutex<Option<VecDeque<ShimProcess>>>,
    /// See [`RuntimeMetrics::warm_shim_failures_total`](crate::RuntimeMetrics::warm_shim_failures_total).
    failures: Arc<AtomicU64>,
}

impl WarmShims {
    /// Creates an empty set, which [`fill`](Self::fill) fills with `target` shims.
    pub(crate) fn new(
        reaper: ShimReaper,
        program: ShimProgram,
        boxes: PathBuf,
        target: usize,
        failures: Arc<AtomicU64>,
    ) -> Self {
        Self {
            reaper,
            program,
            boxes,
            target,
            waiting: Mutex::new(Some(VecDeque::new())),
            failures,
        }
    }

    /// Starts the shims that are missing. Call it in the tokio runtime that polls their pipes.
    pub(crate) fn fill(&self) {
        if let Some(waiting) = &mut *self.waiting() {
            while waiting.len() < self.target {
                match ShimProcess::spawn_warm(&self.reaper, &self.program, &self.boxes) {
                    Ok(shim) => waiting.push_back(shim),
                    // A start without a warm shim reports the error.
                    Err(error) => {
                        tracing::debug!(%error, "cannot start a warm shim");
                        return;
                    }
                }
            }
        }
    }

    /// Takes the shim that has waited for longest.
    pub(super) fn take(&self) -> Option<ShimProcess> {
        let mut waiting = self.waiting();
        let waiting = waiting.as_mut()?;
        while let Some(shim) = waiting.pop_front() {
            if shim.is_alive() {
                return Some(shim);
            }
            tracing::warn!(pid = shim.handle().id(), "a warm shim has died");
            self.count_failure();
        }
        None
    }

    /// Counts a shim that has not taken its box.
    pub(super) fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of live shims, and what `read` returns while no shim is started or taken.
    pub(crate) fn count_with<T>(&self, read: impl FnOnce() -> T) -> (u64, T) {
        let waiting = self.waiting();
        let shims = waiting.iter().flatten();
        let count = shims.filter(|shim| shim.handle().is_running()).count();
        (count as u64, read())
    }

    /// Ends all shims, starts no others, and waits until they are reaped.
    pub(crate) async fn close(&self) {
        join_all(self.release().into_iter().map(ShimProcess::end)).await;
    }

    /// Ends all shims and starts no others.
    pub(crate) fn abandon(&self) {
        drop(self.release());
    }

    fn release(&self) -> VecDeque<ShimProcess> {
        self.waiting().take().unwrap_or_default()
    }

    fn waiting(&self) -> MutexGuard<'_, Option<VecDeque<ShimProcess>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
