use std::sync::Arc;
use std::time::Duration;

use shim_reaper::ReaperClosed;
use tokio::time::timeout;

use super::{STUCK_AFTER, tidy_up};
use crate::boxes::MicroBox;
use crate::core::Core;
use crate::{BoxInfo, RuntimeError};

/// Gives up a start that is under way; a box that does not run is as good as stopped.
pub(crate) async fn stop(
    core: Arc<Core>,
    stopped: Arc<MicroBox>,
    grace: Duration,
) -> Result<BoxInfo, RuntimeError> {
    stopped.give_up_starts();
    let _turn = match timeout(grace, stopped.turn.lock()).await {
        Ok(turn) => turn,
        Err(_) => {
            // It may be that of a stop that is more patient than this one.
            if let Some(shim) = stopped.request_stop()? {
                check(
                    &stopped,
                    shim.pid(),
                    timeout(STUCK_AFTER, shim.kill()).await,
                )?;
            }
            stopped.turn.lock().await
        }
    };
    if let Some(shim) = stopped.request_stop()? {
        let ended = timeout(grace.saturating_add(STUCK_AFTER), shim.stop(grace)).await;
        check(&stopped, shim.pid(), ended)?;
    }
    tidy_up(&core, &stopped).await?;
    Ok(stopped.info())
}

/// Whether a shim that was killed has ended.
pub(super) fn check<T>(
    ended: &MicroBox,
    pid: u32,
    outcome: Result<Result<T, ReaperClosed>, tokio::time::error::Elapsed>,
) -> Result<T, RuntimeError> {
    match outcome {
        Ok(Ok(exit)) => Ok(exit),
        Ok(Err(ReaperClosed)) => Err(RuntimeError::Closed),
        Err(_) => Err(RuntimeError::Stuck {
            id: ended.id().to_owned(),
            pid,
            seconds: STUCK_AFTER.as_secs(),
        }),
    }
}
