use std::time::Duration;

use futures::FutureExt;
use shim_reaper::ShimReaper;

/// For a later runtime in this process that observes them to read how they ended, on kernels that
/// cannot tell once they are collected (before 6.15).
const GRACE: Duration = Duration::from_millis(20);

/// Shims that go on when their runtime, and its reaper, have ended are still children of this
/// process: somebody has to collect them for as long as it lives. The thread ends with the last.
pub(crate) fn keep_collecting(pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    match ShimReaper::builder().owner_grace(GRACE).start_dedicated() {
        Ok(reaper) => {
            for pid in pids {
                // Registering is complete in its first poll.
                let _ = reaper.register(*pid).now_or_never();
            }
        }
        Err(error) => {
            tracing::warn!(?pids, %error, "nobody will collect these detached shims");
        }
    }
}
