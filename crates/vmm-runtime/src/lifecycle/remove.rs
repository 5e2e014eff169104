use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::stop::check;
use super::{STUCK_AFTER, settle, tidy_up};
use crate::boxes::MicroBox;
use crate::core::Core;
use crate::process::procfs;
use crate::{RuntimeError, ShimHandler};

/// How often to look whether a zombie that is somebody else's is gone.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const COLLECTED_WITHIN: Duration = Duration::from_secs(2);

/// How long to wait for the removal of its directory, which a payload can fill without end.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);

/// Returns when nothing of the box is left: no process, no file; but perhaps a zombie that is
/// another process's to collect, and files that take long to remove.
pub(crate) async fn remove(
    core: Arc<Core>,
    removed: Arc<MicroBox>,
    force: bool,
) -> Result<(), RuntimeError> {
    let _removal = removed.removal.lock().await;
    let shim = removed.begin_removal(force)?;
    let kept = Kept(&removed);
    clear_away(&core, &removed, shim).await?;
    std::mem::forget(kept);
    Ok(())
}

/// A box that could not be removed after all.
struct Kept<'a>(&'a MicroBox);

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.keep();
    }
}

async fn clear_away(
    core: &Arc<Core>,
    removed: &Arc<MicroBox>,
    shim: Option<Arc<ShimHandler>>,
) -> Result<(), RuntimeError> {
    // Before the turn: a stop with a long grace may have it, and ends with this.
    if let Some(shim) = shim {
        check(removed, shim.pid(), timeout(STUCK_AFTER, shim.kill()).await)?;
        let _ = settle(core, removed).await;
        until_collected(removed, shim.pid()).await;
    }
    let _turn = removed.turn.lock().await;
    tidy_up(core, removed).await?;
    let remnant = core
        .on_disk({
            let home = core.home.clone();
            let id = removed.id().to_owned();
            move || home.set_aside(&id)
        })
        .await?;
    if let Some(remnant) = remnant
        && timeout(REMOVED_WITHIN, core.remove_remnant(remnant))
            .await
            .is_err()
    {
        let id = removed.id();
        tracing::warn!(
            id,
            "its directory is large: the removal goes on in the background"
        );
    }
    core.boxes.remove(removed.id());
    removed.removed();
    Ok(())
}

/// Its death is known, and so the number is its zombie's until it is collected. By the reaper that
/// is at once; whoever else is to do it, is waited for, and may never do it.
async fn until_collected(removed: &MicroBox, pid: u32) {
    let deadline = Instant::now() + COLLECTED_WITHIN;
    while procfs::is_zombie(pid) {
        if Instant::now() >= deadline {
            let id = removed.id();
            tracing::warn!(
                id,
                pid,
                "its shim stays a zombie until its parent collects it"
            );
            return;
        }
        sleep(LOOK_EVERY).await;
    }
}
