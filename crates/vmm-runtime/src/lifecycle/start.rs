use std::fs;
use std::io;
use std::sync::Arc;

use tokio::time::timeout;
use vmm_protocol::{FILES, FileError, InstanceSpec};

use super::stop::check;
use super::{STUCK_AFTER, keep_tidying, supervise, tidy_up};
use crate::boxes::{Beginning, MicroBox};
use crate::core::Core;
use crate::{BoxInfo, RuntimeError, ShimHandler, StartError};
use tokio_util::sync::CancellationToken;

/// Returns when the payload is ready, at once if it runs already. `stops` is what the box's were
/// when the start was asked for.
pub(crate) async fn start(
    core: Arc<Core>,
    started: Arc<MicroBox>,
    stops: u64,
) -> Result<BoxInfo, RuntimeError> {
    // One that is under way may fail, and leave the box as it is.
    drop(started.removal.lock().await);
    let _turn = started.turn.lock().await;
    loop {
        tidy_up(&core, &started).await?;
        match started.begin_start(stops, &core.closing)? {
            Beginning::Running => return Ok(started.info()),
            Beginning::After(shim) => {
                let grace = started.grace();
                let limit = grace.saturating_add(STUCK_AFTER);
                let ended = timeout(limit, shim.stop(grace)).await;
                check(&started, shim.pid(), ended)?;
            }
            Beginning::Begun { spec, interrupt } => {
                return match launch(&core, &started, &spec, &interrupt).await {
                    Ok(shim) => {
                        supervise(&core, &started, shim);
                        Ok(started.info())
                    }
                    Err(error) => Err(fail(&core, &started, error).await),
                };
            }
            Beginning::Untidy => {}
            Beginning::GivenUp => return Err(failure(&started, StartError::Interrupted)),
        }
    }
}

async fn launch(
    core: &Core,
    started: &MicroBox,
    spec: &InstanceSpec,
    interrupt: &CancellationToken,
) -> Result<Arc<ShimHandler>, StartError> {
    clear_last_run(core, started).await?;
    let shim = core
        .controller
        .start_unless(interrupt, started.dir(), spec, |shim| started.spawned(shim))
        .await?;
    match started.started(shim) {
        Ok(shim) => Ok(shim),
        Err(shim) => {
            // Whether it ends or is stuck, it is not this box's any more.
            let _ = timeout(STUCK_AFTER, shim.kill()).await;
            Err(StartError::Interrupted)
        }
    }
}

async fn fail(core: &Arc<Core>, started: &Arc<MicroBox>, error: StartError) -> RuntimeError {
    started.start_failed(&error);
    let _ = tidy_up(core, started).await;
    if let StartError::Interrupted = error {
        // As if it had not been begun. The cleanup has read these files before.
        let _ = clear_last_run(core, started).await;
    }
    keep_tidying(core, Arc::clone(started));
    failure(started, error)
}

fn failure(started: &MicroBox, source: StartError) -> RuntimeError {
    RuntimeError::Start {
        id: started.id().to_owned(),
        source,
    }
}

/// What the last run has left must not be taken for this one's.
async fn clear_last_run(core: &Core, started: &MicroBox) -> Result<(), StartError> {
    let files = FILES.run_files(started.dir());
    let cleared = core
        .on_disk(move || {
            for path in files {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(FileError::new("delete", path, error));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await;
    cleared.map_err(|error| match error {
        RuntimeError::File(error) => StartError::File(error),
        _ => StartError::Interrupted,
    })
}
