use std::sync::Arc;

use crate::ShimHandler;
use crate::boxes::MicroBox;
use crate::core::{Core, on_disk};
use crate::health;

/// Follows a shim to its end, in a task of its own that ends with the runtime at the latest.
pub(crate) fn supervise(core: &Arc<Core>, followed: &Arc<MicroBox>, shim: Arc<ShimHandler>) {
    let followed = Arc::clone(followed);
    let task = {
        let core = Arc::clone(core);
        async move {
            let checked = check_health(&core, &followed, &shim);
            tokio::select! {
                biased;
                () = core.closing.cancelled() => return,
                _ = shim.wait() => {}
                () = checked => {}
            }
            // Counted first: whoever closes the runtime afterwards waits for it.
            let _counted = core.operations.token();
            if core.closing.is_cancelled() {
                return;
            }
            followed.settle();
            // Not while the next start is under way: its payload is no stray.
            let _turn = followed.turn.lock().await;
            tidy_up(&core, &followed).await;
        }
    };
    core.spawn(task);
}

/// Returns only with the box.
async fn check_health(core: &Core, followed: &MicroBox, shim: &Arc<ShimHandler>) {
    let Some(options) = followed.health_check() else {
        return std::future::pending().await;
    };
    let report = |state| followed.set_health(shim, state);
    health::check(&options, followed.dir(), &core.probes, report).await;
}

/// What remains to be done when a run is over. To be called in the box's turn.
pub(crate) async fn tidy_up(core: &Core, ended: &Arc<MicroBox>) {
    if let Some(litter) = ended.take_litter() {
        let strays = Arc::clone(&core.strays);
        let searched = on_disk(move || {
            strays.end(litter);
            Ok(())
        });
        // Fails only when everything ends.
        let _ = searched.await;
    }
    let saved = Arc::clone(ended);
    if let Err(error) = on_disk(move || saved.save()).await {
        tracing::warn!(id = ended.id(), %error, "how the box ended is not on disk");
    }
}
