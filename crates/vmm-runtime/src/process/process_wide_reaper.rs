use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use shim_reaper::ShimReaper;
use vmm_protocol::procfs;

/// The owner's grace period. A later runtime in this process that observes a shim needs this time
/// to read how it ended: before Linux 6.15 the kernel no longer reports that after the reap.
const OWNER_GRACE: Duration = Duration::from_millis(20);

/// Returns the process-wide reaper, which reaps the children that belong to no open runtime: health
/// probes, which must not count as shims, and shims that outlive their runtime. The first call
/// starts it, on its own thread. It is static and is never stopped, because those children may live
/// as long as the process.
pub(crate) fn process_wide_reaper() -> io::Result<ShimReaper> {
    static PROCESS_WIDE_REAPER: Mutex<Option<ShimReaper>> = Mutex::new(None);
    let mut shared = PROCESS_WIDE_REAPER
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(reaper) = &*shared {
        return Ok(reaper.clone());
    }
    let reaper = ShimReaper::builder()
        .owner_grace(OWNER_GRACE)
        .start_dedicated()?;
    Ok(shared.insert(reaper).clone())
}

/// Registers the children among `pids` with the process-wide reaper. A shim that outlives its
/// runtime and its reaper may still be a child of this process, which must then reap it.
pub(crate) fn keep_reaping(pids: &[u32]) {
    for pid in pids.iter().copied().filter(|pid| procfs::is_child(*pid)) {
        match process_wide_reaper() {
            Ok(reaper) => {
                // Fails only after a shutdown of that reaper.
                drop(reaper.register(pid));
            }
            Err(error) => {
                tracing::warn!(pid, %error, "cannot reap this detached shim after its exit")
            }
        }
    }
}
