use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::lifecycle::{RuntimeShutdown, shut_down};

/// The one shutdown that a runtime can have, and its report for everybody who asks.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    begun: AtomicBool,
    report: OnceLock<RuntimeShutdown>,
    /// Cancelled when there is a report.
    reported: CancellationToken,
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
        });
    }

    pub(crate) async fn report(&self) -> RuntimeShutdown {
        self.reported.cancelled().await;
        self.report.get().cloned().unwrap_or_default()
    }

    pub(crate) fn report_blocking(&self) -> RuntimeShutdown {
        self.report.wait().clone()
    }
}
