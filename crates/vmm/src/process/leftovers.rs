use futures::FutureExt;
use shim_reaper::ShimReaper;

/// Shims that go on when their runtime, and its reaper, have ended are still children of this
/// process: somebody has to collect them for as long as it lives. The thread ends with the last.
pub(crate) fn keep_collecting(pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    match ShimReaper::builder().start_dedicated() {
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
