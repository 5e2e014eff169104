use std::fs;
use std::io;
use std::sync::Arc;

use vmm_shim::{FILES, FileError};

use super::{supervise, tidy_up};
use crate::boxes::MicroBox;
use crate::core::{Core, on_disk};
use crate::{BoxInfo, RuntimeError, StartError};

/// Returns when the payload is ready, at once if it runs already.
pub(crate) async fn start(
    core: Arc<Core>,
    started: Arc<MicroBox>,
) -> Result<BoxInfo, RuntimeError> {
    let _turn = started.turn.lock().await;
    tidy_up(&core, &started).await;
    let Some(beginning) = started.begin_start(&core.closing)? else {
        return Ok(started.info());
    };
    let shim = match clear_last_run(&started).await {
        Ok(()) => {
            core.controller
                .start_unless(
                    &beginning.interrupt,
                    started.dir(),
                    &beginning.spec,
                    |shim| started.spawned(shim),
                )
                .await
        }
        Err(error) => Err(error),
    };
    match shim {
        Ok(shim) => match started.started(shim) {
            Ok(shim) => {
                supervise(&core, &started, shim);
                Ok(started.info())
            }
            Err(shim) => {
                // It is enough that it has been told to end.
                let _ = shim.kill().await;
                fail(&core, &started, StartError::Interrupted).await
            }
        },
        Err(error) => fail(&core, &started, error).await,
    }
}

async fn fail(
    core: &Core,
    started: &Arc<MicroBox>,
    error: StartError,
) -> Result<BoxInfo, RuntimeError> {
    started.start_failed(&error);
    tidy_up(core, started).await;
    Err(RuntimeError::Start {
        id: started.id().to_owned(),
        source: error,
    })
}

/// What the last run has left must not be taken for this one's.
async fn clear_last_run(started: &MicroBox) -> Result<(), StartError> {
    let files = FILES.of_a_run(started.dir());
    let cleared = on_disk(move || {
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
