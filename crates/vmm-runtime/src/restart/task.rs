use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
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
    let slots = Semaphore::new(MAX_CONCURRENT);
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = core.closing.cancelled() => return,
            Some(()) = running.next(), if !running.is_empty() => {}
            id = core.due.next(), if slots.available_permits() > 0 => {
                if let Ok(bx) = core.boxes.find(&id) {
                    running.push(run(Arc::clone(&core), bx, &slots));
                }
            }
        }
    }
}

/// Runs what is due for the box. Continues in the background after [`SLOT_TIMEOUT`].
async fn run(core: Arc<Core>, bx: Arc<MicroBox>, slots: &Semaphore) {
    if bx.follow_up() == Some(FollowUp::Remove) {
        // Without a slot: readers must not keep other boxes from their turn.
        let _ = timeout(READERS_TIMEOUT, bx.console_readers.wait()).await;
    }
    let Ok(_slot) = slots.acquire().await else {
        return;
    };
    let work = {
        let core = Arc::clone(&core);
        async move {
            let result = match bx.follow_up() {
                Some(FollowUp::Restart) => restart(core, &bx).await,
                Some(FollowUp::Remove) => {
                    lifecycle::remove(core, Arc::clone(&bx), Removal::Ended).await
                }
                // A user has started or removed it meanwhile.
                None => Ok(()),
            };
            if let Err(error) = result {
                tracing::warn!(id = bx.id().as_str(), error = %with_causes(&error), "restart or automatic removal failed");
                bx.retry_follow_up();
            }
            Ok(())
        }
    };
    let _ = timeout(SLOT_TIMEOUT, core.run_detached(work)).await;
}

async fn restart(core: Arc<Core>, bx: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    let request = StartRequest::restart(bx.stop_epoch());
    match lifecycle::start(core, Arc::clone(bx), request).await {
        // Reported as an event, which has scheduled the next restart, or interrupted.
        Ok(_) | Err(RuntimeError::Start { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
