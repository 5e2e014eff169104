use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::home::Retiring;
use crate::lifecycle::{RuntimeShutdown, shut_down};

/// The one shutdown that a runtime can have, and its report for everybody who asks.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    begun: AtomicBool,
    report: OnceLock<RuntimeShutdown>,
    /// Cancelled when there is a report.
    reported: CancellationToken,
    /// Dropped then.
    retiring: Mutex<Option<Retiring>>,
}

impl Shutdown {
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// In a task that comes to its end whoever waits for it, and how.
    pub(crate) fn begin(self: &Arc<Self>, core: &Arc<Core>, limit: Duration) {
        if self.begun.swap(true, Ordering::AcqRel) {
            return;
        }
        let (this, ending) = (Arc::clone(self), Arc::clone(core));
        core.spawn(async move {
            let run = AssertUnwindSafe(shut_down(&ending, limit)).catch_unwind();
            let report = run.await.unwrap_or_else(|_| {
                tracing::error!("the shutdown panicked: the shims are let go");
                ending.abandon();
                RuntimeShutdown::default()
            });
            // Nobody else sets it.
            let _ = this.report.set(report);
            this.reported.cancel();
            drop(this.retiring().take());
        });
    }

    fn retiring(&self) -> MutexGuard<'_, Option<Retiring>> {
        self.retiring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody holds the runtime any more: who opens its home next waits for the end of this.
    pub(crate) fn keep(&self, retiring: Retiring) {
        let mut kept = self.retiring();
        if !self.reported.is_cancelled() {
            *kept = Some(retiring);
        }
    }

    pub(crate) async fn report(&self) -> RuntimeShutdown {
        self.reported.cancelled().await;
        self.report.get().cloned().unwrap_or_default()
    }

    pub(crate) fn report_blocking(&self) -> RuntimeShutdown {
        self.report.wait().clone()
    }
}
