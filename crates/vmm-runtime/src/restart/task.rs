use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::timeout;
use vmm_protocol::with_causes;

use crate::boxes::{FollowUp, MicroBox, StartRequest};
use crate::core::Core;
use crate::{Removal, RuntimeError, lifecycle};

/// The number of restarts and removals that run at once, so that boxes in a crash loop leave disk
/// and processors to the operations of users.
const MAX_CONCURRENT: usize = 8;

/// How long an operation counts as running: a payload may take long until it is ready.
const SLOT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long clients that read the output of a box can delay its automatic removal.
const READERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Restarts and removes boxes when that is due, until the runtime closes.
pub(crate) async fn follow_up(core: Arc<Core>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = core.closing.cancelled() => return,
            Some(()) = running.next(), if !running.is_empty() => {}
            id = core.due.next(), if running.len() < MAX_CONCURRENT => {
                if let Ok(bx) = core.boxes.find(&id) {
                    running.push(run(Arc::clone(&core), bx));
                }
            }
        }
    }
}

/// Runs what is due for the box. Continues in the background after [`SLOT_TIMEOUT`].
async fn run(core: Arc<Core>, bx: Arc<MicroBox>) {
    // A removal that waits for readers must not keep other boxes from their turn.
    let waits = bx.follow_up() == Some(FollowUp::Remove) && !bx.console_readers.is_empty();
    let slot = if waits { Duration::ZERO } else { SLOT_TIMEOUT };
    let work = {
        let core = Arc::clone(&core);
        async move {
            let result = match bx.follow_up() {
                Some(FollowUp::Restart) => restart(core, &bx).await,
                Some(FollowUp::Remove) => remove(core, &bx).await,
                None => Ok(()),
            };
            if let Err(error) = result {
                tracing::warn!(id = bx.id().as_str(), error = %with_causes(&error), "restart or automatic removal failed");
                bx.retry_follow_up();
            }
            Ok(())
        }
    };
    // Also without time, the first poll spawns the work.
    let _ = timeout(slot, core.run_detached(work)).await;
}

async fn restart(core: Arc<Core>, bx: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    let request = StartRequest::restart(bx.stop_epoch());
    match lifecycle::start(core, Arc::clone(bx), request).await {
        // Reported as an event, which has scheduled the next restart, or interrupted.
        Ok(_) | Err(RuntimeError::Start { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the box when its output has been read.
async fn remove(core: Arc<Core>, bx: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    tokio::select! {
        biased;
        // The next runtime removes it.
        () = core.closing.cancelled() => return Ok(()),
        _ = timeout(READERS_TIMEOUT, bx.console_readers.wait()) => {}
    }
    match bx.follow_up() {
        Some(FollowUp::Remove) => lifecycle::remove(core, Arc::clone(bx), Removal::Ended).await,
        // A user has started or removed it meanwhile.
        _ => Ok(()),
    }
}
