use std::sync::Arc;

use tokio::time::timeout;

use super::stop::check_killed;
use super::{cleanup, observe_exit};
use crate::boxes::MicroBox;
use crate::core::Core;
use crate::process::{SIGKILL_TIMEOUT, wait_until_reaped};
use crate::{RuntimeError, ShimHandler};

/// Whether a removal ends a running box.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Removal {
    /// Fail if the box is starting or running.
    #[default]
    Ended,
    /// Kill the box first, without a grace period.
    Force,
}

impl From<bool> for Removal {
    /// Returns [`Removal::Force`] for `true`: an option `--force`, for example.
    fn from(force: bool) -> Self {
        if force { Self::Force } else { Self::Ended }
    }
}

/// Removes a box. Returns when no process of the box is left, except for a zombie that another
/// process must reap, and its directory has a name on disk that marks it for removal. A background
/// task deletes the directory: a payload can fill it without limit.
pub(crate) async fn remove(
    core: Arc<Core>,
    bx: Arc<MicroBox>,
    removal: Removal,
) -> Result<(), RuntimeError> {
    let _removal = bx.removal_lock.lock().await;
    let shim = bx.begin_removal(removal)?;
    let rollback = CancelRemovalOnDrop(&bx);
    remove_contents(&core, &bx, shim).await?;
    std::mem::forget(rollback);
    Ok(())
}

/// Lets operations on the box begin again when a removal fails or is dropped.
struct CancelRemovalOnDrop<'a>(&'a MicroBox);

impl Drop for CancelRemovalOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel_removal();
    }
}

/// Kills the shim and removes the files of a box, whose gate is closed for other operations.
async fn remove_contents(
    core: &Arc<Core>,
    bx: &Arc<MicroBox>,
    shim: Option<Arc<ShimHandler>>,
) -> Result<(), RuntimeError> {
    // Before the lock: a stop with a long grace period may hold it, and ends when the shim does.
    if let Some(shim) = shim {
        check_killed(bx, shim.pid(), timeout(SIGKILL_TIMEOUT, shim.kill()).await)?;
        let _ = observe_exit(core, bx).await;
        if !wait_until_reaped(shim.pid()).await {
            tracing::warn!(
                id = bx.id().as_str(),
                pid = shim.pid(),
                "the shim remains a zombie"
            );
        }
    }
    let _operation = bx.operation_lock.lock().await;
    cleanup(core, bx).await?;
    let remnant = core
        .run_on_disk({
            let home = core.home.clone();
            let id = bx.id().clone();
            move || home.set_aside(&id)
        })
        .await?;
    core.boxes.remove(bx.id());
    core.uids.release(bx.uid());
    bx.mark_removed();
    if let Some(remnant) = remnant {
        drop(core.remove_remnant(remnant));
    }
    Ok(())
}
