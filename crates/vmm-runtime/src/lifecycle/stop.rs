use std::sync::Arc;
use std::time::Duration;

use shim_reaper::ReaperClosed;
use tokio::time::timeout;

use super::supervise::save;
use super::{cleanup, retry_cleanup};
use crate::boxes::MicroBox;
use crate::core::Core;
use crate::process::SIGKILL_TIMEOUT;
use crate::{BoxInfo, RuntimeError};

/// Stops a box. Cancels a start in progress; succeeds if the box is not running.
///
/// Fails if the box has a restart policy and the stop cannot be saved, because the next runtime could
/// restart the box. A background task then retries to save it.
pub(crate) async fn stop(
    core: Arc<Core>,
    bx: Arc<MicroBox>,
    grace: Duration,
) -> Result<BoxInfo, RuntimeError> {
    bx.cancel_starts();
    let _operation = match timeout(grace, bx.operation_lock.lock()).await {
        Ok(guard) => guard,
        Err(_) => {
            // The holder may be a stop with a longer grace period.
            if let Some(shim) = bx.request_stop()? {
                check_killed(&bx, shim.pid(), timeout(SIGKILL_TIMEOUT, shim.kill()).await)?;
            }
            bx.operation_lock.lock().await
        }
    };
    if let Some(shim) = bx.request_stop()? {
        let exit = timeout(grace.saturating_add(SIGKILL_TIMEOUT), shim.stop(grace)).await;
        check_killed(&bx, shim.pid(), exit)?;
    }
    cleanup(&core, &bx).await?;
    if bx.has_restart_policy()
        && let Err(error) = save(&core, &bx).await
    {
        retry_cleanup(&core, Arc::clone(&bx));
        return Err(error);
    }
    Ok(bx.info())
}

/// Converts the result of waiting for a killed shim.
pub(super) fn check_killed<T>(
    bx: &MicroBox,
    pid: u32,
    outcome: Result<Result<T, ReaperClosed>, tokio::time::error::Elapsed>,
) -> Result<T, RuntimeError> {
    match outcome {
        Ok(Ok(exit)) => Ok(exit),
        Ok(Err(ReaperClosed)) => Err(RuntimeError::Closed),
        Err(_) => Err(RuntimeError::Stuck {
            id: bx.id().clone(),
            pid,
            seconds: SIGKILL_TIMEOUT.as_secs(),
        }),
    }
}
