use std::sync::Arc;

use tokio::time::{Instant, timeout};
use vmm_protocol::InstanceSpec;

use super::stop::check_killed;
use super::supervise::save;
use super::{cleanup, retry_cleanup, supervise};
use crate::boxes::{MicroBox, StartDecision, StartRequest};
use crate::core::Core;
use crate::process::SIGKILL_TIMEOUT;
use crate::{BoxInfo, RuntimeError, ShimHandler, StartError};
use tokio_util::sync::CancellationToken;

/// Starts a box and returns when its payload is ready.
pub(crate) async fn start(
    core: Arc<Core>,
    bx: Arc<MicroBox>,
    request: StartRequest,
) -> Result<BoxInfo, RuntimeError> {
    // Waits for a removal in progress, which may fail and leave the box as it is.
    drop(bx.removal_lock.lock().await);
    let _operation = bx.operation_lock.lock().await;
    loop {
        cleanup(&core, &bx).await?;
        // Not for a box that runs already, whose start succeeds.
        if bx.shim().is_none() {
            core.check_free_space().await?;
        }
        // The next runtime finds in the record which user the processes of the box have.
        if bx.uid().is_some() {
            save(&core, &bx).await?;
        }
        match bx.begin_start(request, &core.closing)? {
            StartDecision::Running => return Ok(bx.info()),
            StartDecision::AwaitExit(shim) => {
                let grace = bx.stop_grace();
                let limit = grace.saturating_add(SIGKILL_TIMEOUT);
                let exit = timeout(limit, shim.stop(grace)).await;
                check_killed(&bx, shim.pid(), exit)?;
            }
            StartDecision::Launch { spec, interrupt } => {
                let shim = launch(&core, &bx, &spec, &interrupt).await;
                // Later, because the caller waits for this start.
                let warm_shims = Arc::clone(&core.warm_shims);
                core.spawn(async move { warm_shims.fill() });
                return match shim {
                    Ok(shim) => {
                        supervise(&core, &bx, shim);
                        Ok(bx.info())
                    }
                    Err(error) => Err(handle_failed_start(&core, &bx, request, error).await),
                };
            }
            StartDecision::NeedsCleanup => {}
            StartDecision::Cancelled => return Err(start_error(&bx, StartError::Interrupted)),
        }
    }
}

/// Spawns the shim and waits until the payload is ready.
async fn launch(
    core: &Core,
    bx: &Arc<MicroBox>,
    spec: &InstanceSpec,
    interrupt: &CancellationToken,
) -> Result<Arc<ShimHandler>, StartError> {
    let console_size = prepare_dir(core, bx).await?;
    if bx.saves_runs() {
        save(core, bx).await.map_err(to_start_error)?;
    }
    let mut spec = spec.clone();
    spec.policy = core.policy.clone();
    spec.cache_dir = Some(core.cache_dir.clone());
    let begun = Instant::now();
    let shim = core
        .controller
        .start_cancellable(interrupt, bx.dir().path(), &spec, |shim| {
            core.zombies.watch(shim);
            bx.set_spawned(shim, console_size);
        })
        .await?;
    let duration = begun.elapsed();
    let shim = Arc::new(shim.with_start_duration(duration));
    if bx.mark_started(&shim) {
        core.events.box_started(duration, shim.boot_times());
        Ok(shim)
    } else {
        // Whether it ends or is stuck, it no longer belongs to the box.
        let _ = timeout(SIGKILL_TIMEOUT, shim.kill()).await;
        Err(StartError::Interrupted)
    }
}

/// Records a failed start, cleans up after it, and returns the error.
async fn handle_failed_start(
    core: &Arc<Core>,
    bx: &Arc<MicroBox>,
    request: StartRequest,
    error: StartError,
) -> RuntimeError {
    let marked = core.inspect({
        let bx = Arc::clone(bx);
        move || bx.mark_start_failed(error)
    });
    let error = match marked.await {
        Ok(error) => error,
        Err(error) => return error,
    };
    let _ = cleanup(core, bx).await;
    if let StartError::Interrupted = error {
        // Restores the state before the start. The cleanup has already read these files.
        let _ = prepare_dir(core, bx).await;
        bx.cancel_start(request);
    }
    retry_cleanup(core, Arc::clone(bx));
    start_error(bx, error)
}

/// Creates the error of a failed start.
fn start_error(bx: &MicroBox, source: StartError) -> RuntimeError {
    RuntimeError::Start {
        id: bx.id().clone(),
        source,
    }
}

/// Deletes the files of the previous run, which would otherwise be taken for those of this run.
/// Returns the size of the console, which is kept.
async fn prepare_dir(core: &Core, bx: &MicroBox) -> Result<u64, StartError> {
    let dir = bx.dir().clone();
    let prepare = move || dir.delete_run_files().map(|()| dir.console_size());
    core.run_on_disk(prepare).await.map_err(to_start_error)
}

/// Converts the error of an access to the disk.
fn to_start_error(error: RuntimeError) -> StartError {
    match error {
        RuntimeError::File(error) => StartError::File(error),
        _ => StartError::Interrupted,
    }
}
