use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use ulid::Ulid;
use vmm_shim::{ExitRecord, FILES, FileError, PidRecord, ProcessIdentity};

use super::{supervise, tidy_up};
use crate::boxes::{BoxRecord, MicroBox, Outcome};
use crate::core::{Core, on_disk};
use crate::process::procfs;
use crate::{BoxSpec, RuntimeError, ShimHandler};

/// Takes in what an earlier runtime has left in the home: boxes, and shims that still run.
pub(crate) async fn recover(core: &Arc<Core>) -> Result<(), RuntimeError> {
    let found = on_disk({
        let core = Arc::clone(core);
        move || read_all(&core)
    })
    .await?;
    for Found { recovered, shim } in found {
        let recovered = Arc::new(recovered);
        core.boxes.insert(Arc::clone(&recovered));
        if let Some(name) = recovered.info().name
            && let Err(error) = core.boxes.reserve(&name, recovered.id())
        {
            tracing::warn!(id = recovered.id(), %error, "found by its id alone");
        }
        match shim {
            Shim::None => {}
            Shim::Recorded(record) => match_up(core, &recovered, record).await?,
            Shim::Unreadable(error) => {
                tracing::error!(id = recovered.id(), %error, "its shim does not run");
                let exit = ExitRecord::read(&recovered.dir().join(FILES.exit));
                let outcome = Outcome::of(None, None, exit, false);
                recovered.found_ended(outcome.because(&error));
            }
        }
        tidy_up(core, &recovered).await;
    }
    Ok(())
}

/// Goes on with the shim of this record if it still runs, or takes note of its end.
async fn match_up(
    core: &Arc<Core>,
    recovered: &Arc<MicroBox>,
    record: PidRecord,
) -> Result<(), RuntimeError> {
    let failed = |error| FileError::new("look at", format!("/proc/{}", record.pid), error);
    let shim = match identify(&record, recovered).map_err(failed)? {
        Some(record) => ShimHandler::from_pid(&core.reaper, &record)
            .await
            .map_err(failed)?,
        None => None,
    };
    let Some(shim) = shim else {
        if !recovered.knows_end_of(&record) {
            let exit = ExitRecord::read(&recovered.dir().join(FILES.exit));
            recovered.found_ended(Outcome::of(Some(record), None, exit, false));
        }
        return Ok(());
    };
    if *shim.record() != record {
        let path = recovered.dir().join(FILES.shim_pid);
        if let Err(error) = shim.record().write(&path) {
            tracing::warn!(id = recovered.id(), %error, "the record of its shim stays as it was");
        }
    }
    let payload = payload_pid(recovered);
    let shim = recovered.recovered(shim.with_payload(payload));
    tracing::info!(id = recovered.id(), pid = shim.pid(), "re-attached");
    supervise(core, recovered, shim);
    Ok(())
}

/// A record with the pid alone may name anybody by now: what it names has to be the shim of this
/// box by its arguments and its directory. `None` if it is not, or nobody.
fn identify(record: &PidRecord, recovered: &MicroBox) -> io::Result<Option<PidRecord>> {
    if record.identity.is_some() {
        return Ok(Some(record.clone()));
    }
    let found = PidRecord::of(record.pid)?;
    let expected = (recovered.id().to_owned(), recovered.dir().to_owned());
    Ok(found.filter(|_| procfs::shim_of(record.pid) == Some(expected)))
}

fn payload_pid(recovered: &MicroBox) -> Option<u32> {
    let record = PidRecord::read(&recovered.dir().join(FILES.payload_pid)).ok()??;
    let now = ProcessIdentity::of(record.pid).ok()??;
    record.identity?.is_same(&now).then_some(record.pid)
}

/// A box as the disk has it.
struct Found {
    recovered: MicroBox,
    shim: Shim,
}

/// What its directory, or else `/proc`, says about a shim of its last run.
enum Shim {
    /// It has never had one.
    None,
    Recorded(PidRecord),
    /// Its `shim.pid` says nothing, and none is running.
    Unreadable(FileError),
}

fn read_all(core: &Core) -> Result<Vec<Found>, FileError> {
    let mut running = RunningShims::default();
    let ids = core.home.box_ids()?;
    Ok(ids
        .into_iter()
        .map(|id| read_one(core, id, &mut running))
        .collect())
}

fn read_one(core: &Core, id: String, running: &mut RunningShims) -> Found {
    let dir = core.home.box_dir(&id);
    let (record, damage) = match BoxRecord::read(&dir.join(FILES.spec)) {
        Ok(record) => (BoxRecord { id, ..record }, None),
        Err(error) => {
            tracing::error!(id, %error, "a damaged box");
            (stand_in(id), Some(error))
        }
    };
    let shim = find_shim(&record.id, &dir, running);
    Found {
        recovered: MicroBox::new(record, damage, dir, Arc::clone(&core.herald)),
        shim,
    }
}

/// For a box whose `box.json` cannot be read; its id still tells when it was created.
fn stand_in(id: String) -> BoxRecord {
    let created_at = Ulid::from_string(&id)
        .ok()
        .and_then(|id| Timestamp::try_from(id.datetime()).ok());
    BoxRecord::new(id, created_at.unwrap_or_default(), BoxSpec::default())
}

fn find_shim(id: &str, dir: &std::path::Path, running: &mut RunningShims) -> Shim {
    let missing = |error: Option<FileError>, running: &mut RunningShims| match running.of(id, dir) {
        Some(pid) => {
            tracing::warn!(id, pid, "found a shim that its shim.pid does not name");
            Shim::Recorded(PidRecord {
                pid,
                identity: None,
            })
        }
        None => error.map_or(Shim::None, Shim::Unreadable),
    };
    match PidRecord::read(&dir.join(FILES.shim_pid)) {
        Ok(Some(record)) => Shim::Recorded(record),
        // Without this file no shim has ever been started.
        Ok(None) if !dir.join(FILES.shim_stderr).exists() => Shim::None,
        Ok(None) => missing(None, running),
        Err(error) => missing(Some(error), running),
    }
}

/// The shims that `/proc` shows, looked up once, and only if need be.
#[derive(Default)]
struct RunningShims(Option<HashMap<(String, PathBuf), u32>>);

impl RunningShims {
    fn of(&mut self, id: &str, dir: &std::path::Path) -> Option<u32> {
        let shims = self.0.get_or_insert_with(|| {
            procfs::pids()
                .filter_map(|pid| Some((procfs::shim_of(pid)?, pid)))
                .collect()
        });
        shims.get(&(id.to_owned(), dir.to_owned())).copied()
    }
}
