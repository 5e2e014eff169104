use std::sync::Arc;

use vmm_protocol::ControlGroup;

use crate::boxes::MicroBox;
use crate::core::Core;
use crate::{BoxInfo, RuntimeError, ShimHandler, exec};

/// Freezes the payload of a running box. Succeeds if it is frozen.
pub(crate) async fn pause(core: Arc<Core>, bx: Arc<MicroBox>) -> Result<BoxInfo, RuntimeError> {
    set_paused(&core, &bx, true).await
}

/// Lets the payload of a box continue. Succeeds if it is not frozen.
pub(crate) async fn resume(core: Arc<Core>, bx: Arc<MicroBox>) -> Result<BoxInfo, RuntimeError> {
    set_paused(&core, &bx, false).await
}

async fn set_paused(
    core: &Arc<Core>,
    bx: &Arc<MicroBox>,
    paused: bool,
) -> Result<BoxInfo, RuntimeError> {
    let _operation = bx.operation_lock.lock().await;
    let id = || bx.id().clone();
    let shim = bx.ready_shim()?;
    if bx.info().stopping {
        return Err(RuntimeError::NotRunning { id: id() });
    }
    if !paused && !bx.is_paused() {
        // The kernel knows of a pause that a recovery could not read.
        recover_pause(core, bx, &shim).await;
    }
    if bx.is_paused() != paused {
        exec::set_paused(bx.dir(), paused)
            .await
            .map_err(|source| RuntimeError::Exec { id: id(), source })?;
        bx.set_paused(&shim, paused);
        // A shim that has ended meanwhile is not paused.
        super::observe_exit(core, bx).await?;
    }
    Ok(bx.info())
}

/// Reads whether the payload of a shim of an earlier runtime is frozen: from the kernel, or, for a guest,
/// from the record of the shim.
pub(super) async fn recover_pause(core: &Arc<Core>, bx: &Arc<MicroBox>, shim: &Arc<ShimHandler>) {
    let (dir, pid) = (bx.dir().clone(), shim.pid());
    let is_frozen = move || {
        // Resources are exhausted otherwise. `resume` reads it again.
        let group = ControlGroup::of_shim(dir.path(), pid).unwrap_or_default();
        dir.is_paused() || group.is_some_and(|group| group.is_frozen())
    };
    if core
        .run_on_disk(move || Ok(is_frozen()))
        .await
        .unwrap_or_default()
    {
        bx.mark_recovered_paused(shim);
    }
}
