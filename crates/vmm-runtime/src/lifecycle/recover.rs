use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use tokio::time::timeout;
use ulid::Ulid;
use vmm_protocol::{ExitRecord, FILES, FileError, PidLookup, PidRecord, is_resource_exhaustion};

use super::{keep_tidying, supervise, tidy_up};
use crate::boxes::{BoxRecord, MicroBox, Outcome};
use crate::core::Core;
use crate::home::Contents;
use crate::process::procfs;
use crate::{BoxSpec, RuntimeError, ShimHandler};

/// How long the opening of a home waits for the removal of remnants: they are gone when it returns,
/// unless they are large.
const REMNANTS_WITHIN: Duration = Duration::from_millis(250);

/// How long an opening waits for what earlier runs have left. Afterwards the cleanup goes on.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes in what an earlier runtime has left in the home: boxes, and shims that still run.
pub(crate) async fn recover(core: Arc<Core>) -> Result<(), RuntimeError> {
    let Contents { boxes, remnants } = core
        .on_disk({
            let home = core.home.clone();
            move || home.contents()
        })
        .await?;
    let remnants = join_all(remnants.into_iter().map(|path| core.remove_remnant(path)));
    let found = core
        .on_disk({
            let core = Arc::clone(&core);
            move || read_all(&core, boxes)
        })
        .await?;
    let mut ended = Vec::new();
    for Found { recovered, shim } in found {
        let recovered = Arc::new(recovered);
        core.boxes.insert(Arc::clone(&recovered), |_| {});
        if let Some(name) = recovered.info().name
            && let Err(error) = core.boxes.reserve(&name, recovered.id())
        {
            tracing::warn!(id = recovered.id(), %error, "found by its id alone");
        }
        let shim = match shim {
            Shim::None => {
                if recovered.resume_cleanup() {
                    ended.push(recovered);
                }
                continue;
            }
            Shim::Alive(record) => follow(&core, &recovered, &record).await?,
            Shim::Dead(record) => Err(record),
            Shim::Unreadable(error) => {
                tracing::error!(id = recovered.id(), %error, "its shim does not run");
                let outcome = Outcome::of(None, None, exit_of(&recovered)?, false);
                recovered.found_ended(outcome.because(&error));
                ended.push(recovered);
                continue;
            }
        };
        if let Err(record) = shim {
            let outcome = Outcome::of(Some(record), None, exit_of(&recovered)?, false);
            match &outcome.error {
                Some(error) => {
                    tracing::warn!(id = recovered.id(), error, "failed while no runtime looked");
                }
                None => tracing::info!(id = recovered.id(), "ended while no runtime looked"),
            }
            recovered.found_ended(outcome);
            ended.push(recovered);
        }
    }
    // At once: one search of the process table then does for all. What does not die delays no
    // opening.
    let tidied = join_all(ended.iter().map(|ended| tidy_up(&core, ended)));
    let _ = timeout(CLEANUP_TIMEOUT, tidied).await;
    for ended in ended {
        keep_tidying(&core, ended);
    }
    // Their removal goes on in the background.
    let _ = timeout(REMNANTS_WITHIN, remnants).await;
    Ok(())
}

/// Goes on with the shim of this record; gives the record back if it has ended meanwhile.
async fn follow(
    core: &Arc<Core>,
    recovered: &Arc<MicroBox>,
    record: &PidRecord,
) -> Result<Result<(), PidRecord>, RuntimeError> {
    let attached = ShimHandler::from_pid(&core.reaper, record).await;
    let shim = match attached.map_err(|error| looking_at(record.pid, error))? {
        Some(shim) => shim.with_payload(payload_pid(recovered)),
        None => return Ok(Err(record.clone())),
    };
    let shim = recovered.recovered(shim);
    tracing::info!(id = recovered.id(), pid = shim.pid(), "re-attached");
    supervise(core, recovered, shim);
    Ok(Ok(()))
}

fn payload_pid(recovered: &MicroBox) -> Option<u32> {
    let record = PidRecord::read(&recovered.dir().join(FILES.payload_pid)).ok()??;
    matches!(record.lookup(), Ok(PidLookup::Alive(_))).then_some(record.pid)
}

/// Reads the exit record. A shortage fails the opening: it says nothing about how the box ended.
fn exit_of(recovered: &MicroBox) -> Result<Result<Option<ExitRecord>, FileError>, FileError> {
    match ExitRecord::read(&recovered.dir().join(FILES.exit)) {
        Err(error) if is_resource_exhaustion(&error.source) => Err(error),
        read => Ok(read),
    }
}

fn looking_at(pid: u32, error: io::Error) -> FileError {
    FileError::new("look at", format!("/proc/{pid}"), error)
}

/// A box as the disk has it.
struct Found {
    recovered: MicroBox,
    shim: Shim,
}

/// The shim of a box's last run.
enum Shim {
    /// There is none, or its end is known.
    None,
    /// By its full identity.
    Alive(PidRecord),
    Dead(PidRecord),
    /// Its `shim.pid` says nothing, and none is running.
    Unreadable(FileError),
}

fn read_all(core: &Core, ids: Vec<String>) -> Result<Vec<Found>, FileError> {
    let mut running = RunningShims::default();
    ids.into_iter()
        .map(|id| read_one(core, id, &mut running))
        .collect()
}

fn read_one(core: &Core, id: String, running: &mut RunningShims) -> Result<Found, FileError> {
    let dir = core.home.box_dir(&id);
    let (record, damage) = match BoxRecord::read(&dir.join(FILES.spec)) {
        Ok(record) => (BoxRecord { id, ..record }, None),
        Err(error) if is_resource_exhaustion(&error.source) => return Err(error),
        Err(error) => {
            tracing::error!(id, %error, "a damaged box");
            (stand_in(id), Some(error))
        }
    };
    let recovered = MicroBox::new(record, damage, dir, Arc::clone(&core.herald));
    let shim = find_shim(&recovered, running)?;
    Ok(Found { recovered, shim })
}

/// For a box whose `box.json` cannot be read; its id still tells when it was created.
fn stand_in(id: String) -> BoxRecord {
    let created_at = Ulid::from_string(&id)
        .ok()
        .and_then(|id| Timestamp::try_from(id.datetime()).ok());
    BoxRecord::new(id, created_at.unwrap_or_default(), BoxSpec::default())
}

fn find_shim(recovered: &MicroBox, running: &mut RunningShims) -> Result<Shim, FileError> {
    let dir = recovered.dir();
    let dead = match PidRecord::read(&dir.join(FILES.shim_pid)) {
        Ok(Some(record)) => match identify(&record, recovered) {
            Ok(Some(found)) => return Ok(Shim::Alive(found)),
            Ok(None) if recovered.knows_end_of(&record) => Shim::None,
            Ok(None) => Shim::Dead(record),
            Err(error) => return Err(looking_at(record.pid, error)),
        },
        Ok(None) => Shim::None,
        Err(error) if is_resource_exhaustion(&error.source) => return Err(error),
        Err(error) => Shim::Unreadable(error),
    };
    // A payload can remove or replace the record. Only the process table proves that no shim runs.
    let known = running.of(recovered.id(), dir);
    let known = known.map_err(|source| FileError::new("list", "/proc", source))?;
    let Some(pid) = known else {
        return Ok(dead);
    };
    let record = PidRecord::of(pid).map_err(|error| looking_at(pid, error))?;
    let is_ours = is_shim_of(pid, recovered).map_err(|error| looking_at(pid, error))?;
    let Some(record) = record.filter(|_| is_ours) else {
        return Ok(dead);
    };
    tracing::warn!(
        id = recovered.id(),
        pid,
        "its shim.pid did not name its shim"
    );
    repair(recovered, &record);
    Ok(Shim::Alive(record))
}

/// The shim that a record means, if it is alive, with its identity. What the record names has to be
/// a shim of this box: a payload may have written another process there, and a record with the pid
/// alone may name anybody by now.
fn identify(record: &PidRecord, recovered: &MicroBox) -> io::Result<Option<PidRecord>> {
    let found = |identity| PidRecord {
        pid: record.pid,
        identity: Some(identity),
    };
    match record.lookup()? {
        PidLookup::Alive(identity) => {
            // Its directory may have been moved since.
            let shim = procfs::shim_of(record.pid)?;
            let is_ours = shim.is_some_and(|(id, _)| id == recovered.id());
            Ok(is_ours.then(|| found(identity)))
        }
        PidLookup::Unverified(identity) if is_shim_of(record.pid, recovered)? => {
            let found = found(identity);
            repair(recovered, &found);
            Ok(Some(found))
        }
        PidLookup::Unverified(_) | PidLookup::Reused | PidLookup::NotFound => Ok(None),
    }
}

fn is_shim_of(pid: u32, recovered: &MicroBox) -> io::Result<bool> {
    let shim = procfs::shim_of(pid)?;
    Ok(shim.is_some_and(|(id, dir)| id == recovered.id() && dir == recovered.dir()))
}

fn repair(recovered: &MicroBox, record: &PidRecord) {
    if let Err(error) = record.write(&recovered.dir().join(FILES.shim_pid)) {
        tracing::warn!(id = recovered.id(), %error, "the record of its shim stays as it was");
    }
}

/// The shims that `/proc` shows, looked up once.
#[derive(Default)]
struct RunningShims(Option<HashMap<(String, PathBuf), u32>>);

impl RunningShims {
    fn of(&mut self, id: &str, dir: &Path) -> io::Result<Option<u32>> {
        let shims = match &mut self.0 {
            Some(shims) => shims,
            unknown => unknown.insert(Self::look_up()?),
        };
        Ok(shims.get(&(id.to_owned(), dir.to_owned())).copied())
    }

    fn look_up() -> io::Result<HashMap<(String, PathBuf), u32>> {
        let shims = procfs::pids()?.map(|pid| Ok(procfs::shim_of(pid)?.map(|shim| (shim, pid))));
        shims.filter_map(Result::transpose).collect()
    }
}
