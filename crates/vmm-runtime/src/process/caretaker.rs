use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use shim_reaper::ShimReaper;

use super::procfs;

/// For a later runtime in this process that observes them to read how they ended, on kernels that
/// cannot tell once they are collected (before 6.15).
const GRACE: Duration = Duration::from_millis(20);

/// Collects the children of this process that belong to no runtime: probes, which are not to be
/// counted as shims, and shims that outlive theirs. Started when first needed, on a thread of its
/// own; stays, since whoever it looks after may do so as well.
pub(crate) fn caretaker() -> io::Result<ShimReaper> {
    static CARETAKER: Mutex<Option<ShimReaper>> = Mutex::new(None);
    let mut caretaker = CARETAKER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(reaper) = &*caretaker {
        return Ok(reaper.clone());
    }
    let reaper = ShimReaper::builder().owner_grace(GRACE).start_dedicated()?;
    Ok(caretaker.insert(reaper).clone())
}

/// Shims that go on when their runtime, and its reaper, have ended may still be children of this
/// process: somebody has to collect them for as long as it lives.
pub(crate) fn keep_collecting(pids: &[u32]) {
    for pid in pids.iter().copied().filter(|pid| procfs::is_child(*pid)) {
        match caretaker() {
            Ok(caretaker) => {
                // Registering is complete in its first poll.
                let _ = caretaker.register(pid).now_or_never();
            }
            Err(error) => tracing::warn!(pid, %error, "nobody will collect this detached shim"),
        }
    }
}
