use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use vmm_protocol::with_causes;

use crate::boxes::MicroBox;
use crate::core::Core;
use crate::pause_watcher::PauseWatcher;
use crate::{RuntimeError, ShimHandler, health};

/// The backoff between attempts of a cleanup.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Spawns a task that waits for the exit of the shim, runs the health check until then, and cleans
/// up. The task ends with the runtime at the latest.
pub(crate) fn supervise(core: &Arc<Core>, bx: &Arc<MicroBox>, shim: Arc<ShimHandler>) {
    let bx = Arc::clone(bx);
    let task = {
        let core = Arc::clone(core);
        async move {
            let health_checks = check_health(&core, &bx, &shim);
            let pauses = follow_pauses(&core, &bx, &shim);
            tokio::select! {
                biased;
                () = core.closing.cancelled() => return,
                _ = shim.wait() => {}
                () = health_checks => {}
                () = pauses => {}
            }
            // Registered before the check: a concurrent shutdown either waits for it or ends it
            // here.
            let _operation = core.operations.token();
            if core.closing.is_cancelled() {
                return;
            }
            // Without the operation lock: a stop may hold it while it waits for this exit.
            if let Err(error) = observe_exit(&core, &bx).await {
                tracing::warn!(id = bx.id().as_str(), error = %with_causes(&error), "cannot read how the box ended; retrying");
            }
            let _ = cleanup_locked(&core, &bx).await;
            retry_cleanup(&core, bx);
        }
    };
    core.spawn(task);
}

/// Spawns a task that retries the cleanup with backoff until it succeeds or the runtime ends.
pub(super) fn retry_cleanup(core: &Arc<Core>, bx: Arc<MicroBox>) {
    if bx.is_clean() || !bx.begin_retries() {
        return;
    }
    let task = {
        let core = Arc::clone(core);
        async move {
            let mut pause = MIN_BACKOFF;
            loop {
                tokio::select! {
                    biased;
                    () = core.closing.cancelled() => return,
                    () = sleep(pause) => {}
                }
                // Registered before the check: a concurrent shutdown either waits for it or ends it
                // here.
                let _operation = core.operations.token();
                if core.closing.is_cancelled() {
                    return;
                }
                let _ = cleanup_locked(&core, &bx).await;
                if bx.is_clean() {
                    bx.finish_retries();
                    // A concurrent exit may have left its cleanup to this task.
                    if bx.is_clean() || !bx.begin_retries() {
                        return;
                    }
                }
                pause = (pause * 2).min(MAX_BACKOFF);
            }
        }
    };
    core.spawn(task);
}

/// Saves the exit of a box, if it has exited and the exit is not reported yet, and reports it,
/// unless a [`cleanup`] is due.
///
/// Fails if the exit record cannot be read because descriptors or memory are exhausted.
pub(crate) async fn observe_exit(core: &Core, bx: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    if !bx.has_unreported_exit() {
        return Ok(());
    }
    let bx = Arc::clone(bx);
    core.run_on_disk(move || bx.observe_exit()).await
}

/// Reports the exit of a box, and cleans up after its last run. Returns early if the runtime shuts
/// down, which then does both.
pub(crate) async fn finish_run(core: Arc<Core>, bx: Arc<MicroBox>) -> Result<(), RuntimeError> {
    while observe_exit(&core, &bx).await.is_err() {
        if core.closing.is_cancelled() {
            return Ok(());
        }
        sleep(MIN_BACKOFF).await;
    }
    match bx.cleanup_target() {
        Some(_) => cleanup_locked(&core, &bx).await,
        None => Ok(()),
    }
}

/// Writes `box.json` if it is out of date.
pub(super) async fn save(core: &Core, bx: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    if bx.is_saved() {
        return Ok(());
    }
    let this = Arc::clone(bx);
    let saved = core.run_on_disk(move || this.save()).await;
    if let Err(error) = &saved {
        tracing::warn!(id = bx.id().as_str(), error = %with_causes(error), "cannot save the box");
    }
    saved
}

/// Cleans up under the operation lock, because the payload of a concurrent start is not an orphan.
async fn cleanup_locked(core: &Core, bx: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    let _operation = bx.operation_lock.lock().await;
    cleanup(core, bx).await
}

/// Stores when the payload pauses or continues without a request. Never returns.
async fn follow_pauses(core: &Core, bx: &MicroBox, shim: &Arc<ShimHandler>) {
    // Without a watch, only requests change the status.
    let watch = |pauses: &PauseWatcher| pauses.watch(bx.dir().path()).ok();
    let Some(mut changes) = core.pauses.as_ref().and_then(watch) else {
        return std::future::pending().await;
    };
    loop {
        changes.changed().await;
        let dir = bx.dir().clone();
        let is_recorded = core.inspect(move || dir.is_paused()).await;
        if let Ok(is_recorded) = is_recorded
            && let Some(is_paused) = changes.is_paused(is_recorded)
        {
            bx.set_paused(shim, is_paused);
        }
    }
}

/// Runs the health check of the box. Never returns.
async fn check_health(core: &Core, bx: &MicroBox, shim: &Arc<ShimHandler>) {
    let Some(options) = bx.health_check() else {
        return std::future::pending().await;
    };
    let dir = bx.dir().path();
    let is_paused = || bx.is_paused();
    let report = |state| bx.set_health(shim, state);
    health::run_checks(&options, dir, &core.probes, is_paused, report).await;
}

/// Cleans up after a run: kills its orphans, removes what the shim has left, and reports the exit,
/// also if an orphan cannot be killed. No start of the box is in progress: the caller holds the
/// operation lock, or opens or closes the home. It calls again while the box is not
/// [clean](MicroBox::is_clean).
///
/// Saves that the cleanup is due before it begins, so that the next runtime resumes it.
pub(crate) async fn cleanup(core: &Core, bx: &Arc<MicroBox>) -> Result<(), RuntimeError> {
    observe_exit(core, bx).await?;
    // Saved again below, and by `retry_cleanup`.
    let _ = save(core, bx).await;
    if let Some(target) = bx.cleanup_target() {
        let cleaned = match core.clean_orphans(&target).await {
            Ok(()) => core.clean_files(bx).await,
            failed => failed,
        };
        if cleaned.is_ok() {
            bx.cleanup_done(&target);
        }
        bx.report_exit();
        cleaned.map_err(|source| cleanup_failed(bx, source))?;
        let _ = save(core, bx).await;
    }
    Ok(())
}

/// Logs and returns the error of a failed cleanup.
fn cleanup_failed(bx: &MicroBox, source: io::Error) -> RuntimeError {
    let id = bx.id().clone();
    tracing::warn!(id = id.as_str(), error = %with_causes(&source), "cannot clean up what the previous run has left");
    RuntimeError::CleanupFailed { id, source }
}
