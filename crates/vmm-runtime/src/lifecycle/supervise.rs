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
            // Not in turn: a stop may have that, and waits for this.
            if let Err(error) = settle(&core, &followed).await {
                tracing::warn!(id = followed.id(), %error, "how the box ended is read again");
            }
            let _ = tidy_up_in_turn(&core, &followed).await;
            keep_tidying(&core, followed);
        }
    };
    core.spawn(task);
}

/// Goes on trying, in a task of its own, until nothing is left to do or the runtime ends.
pub(super) fn keep_tidying(core: &Arc<Core>, ended: Arc<MicroBox>) {
    if ended.is_tidy() || !ended.begin_retries() {
        return;
    }
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
                if core.closing.is_cancelled() {
                    return;
                }
                let _ = tidy_up_in_turn(&core, &ended).await;
                if ended.is_tidy() {
                    ended.finish_retries();
                    // Another end meanwhile has left the rest to this task.
                    if ended.is_tidy() || !ended.begin_retries() {
                        return;
                    }
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    };
    core.spawn(task);
}

/// Puts the end of a box on disk and reports it, if it has ended and that is not reported yet.
///
/// Fails if its record cannot be read for want of descriptors or memory.
pub(crate) async fn settle(core: &Core, ended: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    if !ended.is_unsettled() {
        return Ok(());
    }
    let settled = Arc::clone(ended);
    core.on_disk(move || settled.settle()).await
}

/// [`settle`], as often as it takes; until the runtime shuts down, which sees to it itself.
pub(crate) async fn settled(core: &Core, ended: &Arc<MicroBox>) {
    while settle(core, ended).await.is_err() && !core.closing.is_cancelled() {
        sleep(FIRST_PAUSE).await;
    }
}

async fn save(core: &Core, ended: &Arc<MicroBox>) {
    let saved = Arc::clone(ended);
    if let Err(error) = core.on_disk(move || saved.save()).await {
        tracing::warn!(id = ended.id(), %error, "how the box ended is not on disk");
    }
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

/// Does what remains when a run is over: settles its end, and ends what it has left. To be called
/// in the box's turn, and again as long as the box is not [tidy](MicroBox::is_tidy).
///
/// The disk says before that the cleanup is due: the next runtime resumes it.
pub(crate) async fn tidy_up(core: &Core, ended: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    settle(core, ended).await?;
    save(core, ended).await;
    if let Some(litter) = ended.litter() {
        let done = core.end_strays(&litter).await;
        done.map_err(|source| untidy(ended, source))?;
        ended.tidied(&litter);
        save(core, ended).await;
    }
    Ok(())
}

fn untidy(ended: &MicroBox, source: io::Error) -> RuntimeError {
    let id = ended.id().to_owned();
    tracing::warn!(id, error = %source, "what the box has left could not be cleared away");
    RuntimeError::CleanupFailed { id, source }
}
