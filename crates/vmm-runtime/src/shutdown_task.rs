use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::home::ClosingHome;
use crate::lifecycle::{RuntimeShutdown, shut_down};

/// The shutdown of a runtime, which runs once, and its report for every caller.
#[derive(Debug, Default)]
pub(crate) struct ShutdownTask {
    begun: AtomicBool,
    report: OnceLock<RuntimeShutdown>,
    /// Cancelled when the report is set.
    reported: CancellationToken,
    /// Set when the last handle is dropped before the shutdown has ended; dropped when it has.
    closing_home: Mutex<Option<ClosingHome>>,
}

impl ShutdownTask {
    /// Returns whether [`begin`](Self::begin) was called.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Spawns the shutdown unless it has begun. The task runs to its end even if all callers are
    /// gone.
    pub(crate) fn begin(self: &Arc<Self>, core: &Arc<Core>, limit: Duration) {
        if self.begun.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        let runtime = Arc::clone(core);
        core.spawn(async move {
            let run = AssertUnwindSafe(shut_down(&runtime, limit)).catch_unwind();
            let report = run.await.unwrap_or_else(|_| {
                tracing::error!("the shutdown panicked; releasing the watchdogs of the shims");
                runtime.abandon();
                RuntimeShutdown::default()
            });
            // Only this task sets it.
            let _ = this.report.set(report);
            this.reported.cancel();
            drop(this.closing_home().take());
        });
    }

    fn closing_home(&self) -> MutexGuard<'_, Option<ClosingHome>> {
        self.closing_home
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next opener of the home wait until this shutdown has ended. Called when the last
    /// handle is dropped.
    pub(crate) fn hold_home(&self, closing_home: ClosingHome) {
        let mut held = self.closing_home();
        if !self.reported.is_cancelled() {
            *held = Some(closing_home);
        }
    }

    /// Waits for the report.
    pub(crate) async fn report(&self) -> RuntimeShutdown {
        self.reported.cancelled().await;
        self.report.get().cloned().unwrap_or_default()
    }

    /// Blocks the thread until the report is set.
    pub(crate) fn report_blocking(&self) -> RuntimeShutdown {
        self.report.wait().clone()
    }
}
