use std::pin::pin;
use std::time::Duration;

use shim_reaper::Pidfd;
use tokio::time::timeout;
use vmm_runtime::{BoxInfo, RuntimeError, VmmRuntime};
use vmm_shim::KILL_SIGNAL;

/// Stops a box, and kills it if it has not ended in time; the runtime does so itself when the
/// box's own grace is over.
pub(crate) async fn stop_within(
    runtime: &VmmRuntime,
    id: &str,
    limit: Duration,
) -> Result<BoxInfo, RuntimeError> {
    let mut stopped = pin!(runtime.stop(id));
    match timeout(limit, &mut stopped).await {
        Ok(outcome) => outcome,
        Err(_) => {
            if let Err(error) = kill(runtime, id).await {
                tracing::warn!(id, %error, "not killed; its own grace will end it");
            }
            stopped.await
        }
    }
}

async fn kill(runtime: &VmmRuntime, id: &str) -> std::io::Result<()> {
    let running = async || runtime.info(id).await.ok()?.pid;
    let Some(pid) = running().await else {
        return Ok(());
    };
    let shim = Pidfd::open(pid)?;
    // Still the shim's when it was opened, for it is now.
    match running().await == Some(pid) {
        true => shim.signal(KILL_SIGNAL),
        false => Ok(()),
    }
}
