use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::boxes::MicroBox;
use crate::core::Core;
use crate::{RuntimeError, ShimHandler, health};

/// Between attempts to end strays.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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
            if tidy_up_in_turn(&core, &followed).await.is_err() {
                keep_tidying(&core, followed);
            }
        }
    };
    core.spawn(task);
}

/// Goes on trying, in a task of its own, until it is done or the runtime ends.
pub(super) fn keep_tidying(core: &Arc<Core>, ended: Arc<MicroBox>) {
    let task = {
        let core = Arc::clone(core);
        async move {
            let mut pause = FIRST_PAUSE;
            loop {
                tokio::select! {
                    biased;
                    () = core.closing.cancelled() => return,
                    () = sleep(pause) => {}
                }
                // Counted first: whoever closes the runtime afterwards waits for it.
                let _counted = core.operations.token();
                if core.closing.is_cancelled() || tidy_up_in_turn(&core, &ended).await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    };
    core.spawn(task);
}

/// Not while the next start is under way: its payload is no stray.
async fn tidy_up_in_turn(core: &Core, ended: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    let _turn = ended.turn.lock().await;
    tidy_up(core, ended).await
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
///
/// As long as its strays cannot be ended it is to be called again, and how the box ended is not on
/// disk: the next runtime then searches for them, too.
pub(crate) async fn tidy_up(core: &Core, ended: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    if let Some(litter) = ended.litter() {
        let searched = core.end_strays(litter.clone()).await;
        searched.map_err(|source| untidy(ended, source))?;
        ended.tidied(&litter);
    }
    let saved = Arc::clone(ended);
    if let Err(error) = core.on_disk(move || saved.save()).await {
        tracing::warn!(id = ended.id(), %error, "how the box ended is not on disk");
    }
    Ok(())
}

fn untidy(ended: &MicroBox, source: io::Error) -> RuntimeError {
    let id = ended.id().to_owned();
    tracing::warn!(id, error = %source, "what the box has left could not be cleared away");
    RuntimeError::Untidy { id, source }
}
