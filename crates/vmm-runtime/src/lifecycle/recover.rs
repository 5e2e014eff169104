use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use tokio::time::timeout;
use ulid::Ulid;
use vmm_protocol::{
    FileError, PidLookup, PidRecord, boot_id, is_resource_exhaustion, procfs, with_causes,
};

use super::pause::recover_pause;
use super::{cleanup, retry_cleanup, supervise};
use crate::boxes::{BoxRecord, MicroBox, Outcome};
use crate::core::Core;
use crate::home::Contents;
use crate::process::{adopt_orphans_of, membership};
use crate::{BoxId, BoxSpec, RuntimeError, ShimHandler};

/// How long an opening waits for the removal of remnants. Most are gone when it returns; large ones
/// are removed in the background.
const REMNANT_TIMEOUT: Duration = Duration::from_millis(250);

/// How long an opening waits for the cleanup after earlier runs, which then continues in the
/// background.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Recovers the boxes of the home and re-attaches to the shims that still run.
pub(crate) async fn recover(core: Arc<Core>) -> Result<(), RuntimeError> {
    let Contents { boxes, remnants } = core
        .run_on_disk({
            let home = core.home.clone();
            move || home.contents()
        })
        .await?;
    let remnants = join_all(remnants.into_iter().map(|path| core.remove_remnant(path)));
    let found = core
        .run_on_disk({
            let core = Arc::clone(&core);
            move || read_all(&core, boxes)
        })
        .await?;
    reserve_uids(&core, &found)?;
    let mut exited = Vec::new();
    for RecoveredBox { bx, shim } in found {
        let bx = Arc::new(bx);
        core.boxes.insert(Arc::clone(&bx), |_| {});
        if let Some(name) = bx.info().name
            && let Err(error) = core.boxes.reserve_name(&name, bx.id())
        {
            tracing::warn!(id = bx.id().as_str(), %error, "name taken; the box can be found by its id only");
        }
        let outcome = match shim {
            LastShim::None => match unrecorded_outcome(&bx)? {
                None if bx.resume_cleanup() => {
                    exited.push(bx);
                    continue;
                }
                outcome => outcome,
            },
            LastShim::Alive(record) => match attach(&core, &bx, &record).await? {
                Some(shim) => {
                    reattach(&core, &bx, shim).await?;
                    None
                }
                None => Some(read_outcome(&bx, Some(record))?),
            },
            LastShim::Dead(record) => Some(read_outcome(&bx, Some(record))?),
            LastShim::Unreadable(error) => {
                tracing::error!(id = bx.id().as_str(), error = %with_causes(&error), "cannot read shim.pid; no shim is running");
                Some(read_outcome(&bx, None)?.with_error(&error))
            }
        };
        if let Some(outcome) = outcome {
            match &outcome.error {
                Some(error) => {
                    tracing::warn!(
                        id = bx.id().as_str(),
                        error,
                        "failed while no runtime was attached"
                    );
                }
                None => {
                    tracing::info!(id = bx.id().as_str(), "ended while no runtime was attached")
                }
            }
            bx.mark_exited_offline(outcome);
            exited.push(bx);
        }
    }
    // Concurrently, so that one search of the process table serves all. Bounded, so that a process
    // that does not die cannot delay the opening.
    let cleanups = join_all(exited.iter().map(|bx| cleanup(&core, bx)));
    let _ = timeout(CLEANUP_TIMEOUT, cleanups).await;
    for bx in exited {
        retry_cleanup(&core, bx);
    }
    for bx in core.boxes.all() {
        bx.resume_follow_up();
    }
    // The removal continues in the background.
    let _ = timeout(REMNANT_TIMEOUT, remnants).await;
    core.warm_shims.fill();
    Ok(())
}

/// Attaches to the process of this record. Returns `None` if it has ended.
async fn attach(
    core: &Core,
    bx: &MicroBox,
    record: &PidRecord,
) -> Result<Option<ShimHandler>, FileError> {
    let attached = ShimHandler::from_pid(&core.reaper, record).await;
    let attached = attached.map_err(|error| proc_error(record.pid, error))?;
    Ok(attached.map(|shim| shim.with_payload(payload_pid(bx), bx.dir().helper_count())))
}

/// Continues to supervise a box of an earlier runtime.
async fn reattach(
    core: &Arc<Core>,
    bx: &Arc<MicroBox>,
    shim: ShimHandler,
) -> Result<(), FileError> {
    let since = start_of_run(&shim).map_err(|error| proc_error(shim.pid(), error))?;
    let shim = bx.mark_recovered(shim, since);
    recover_pause(core, bx, &shim).await;
    tracing::info!(
        id = bx.id().as_str(),
        pid = shim.pid(),
        "re-attached to shim"
    );
    supervise(core, bx, shim);
    Ok(())
}

/// Returns when the shim started, if this process or its ancestors adopt its orphans.
fn start_of_run(shim: &ShimHandler) -> io::Result<Option<u64>> {
    let identity = shim.record().identity.as_ref();
    let adopt = adopt_orphans_of(shim.pid())?;
    Ok(identity
        .filter(|_| adopt)
        .map(|identity| identity.start_time))
}

/// Returns the pid of the payload, if it is still the recorded process.
fn payload_pid(bx: &MicroBox) -> Option<u32> {
    let record = bx.dir().payload_record().ok()??;
    matches!(record.lookup(), Ok(PidLookup::Alive(_))).then_some(record.pid)
}

/// Returns how the last run ended, by its exit record. Resource exhaustion fails the opening, because
/// it says nothing about how the box ended.
fn read_outcome(bx: &MicroBox, shim: Option<PidRecord>) -> Result<Outcome, FileError> {
    match bx.dir().exit_record() {
        Err(error) if is_resource_exhaustion(&error.source) => Err(error),
        Err(error) => Ok(Outcome::of_exit(shim, None, Err(&error), false)),
        Ok(record) => Ok(Outcome::of_exit(shim, None, Ok(record), false)),
    }
}

/// Returns how a run ended whose launch is on disk, but not its `shim.pid`. No record of a run is synced before its
/// end, so that a power cut can remove all of them, and a payload can remove each. Otherwise the runtime died
/// before it reached a payload.
fn unrecorded_outcome(bx: &MicroBox) -> Result<Option<Outcome>, FileError> {
    let Some(boot) = bx.launched_in() else {
        return Ok(None);
    };
    if !bx.dir().has_run_records() && is_this_boot(&boot)? {
        bx.mark_not_launched();
        return Ok(None);
    }
    read_outcome(bx, None).map(Some)
}

/// Returns whether the host has not booted since. Resource exhaustion does not mean that it has.
fn is_this_boot(boot: &str) -> Result<bool, FileError> {
    match boot_id() {
        Ok(this) => Ok(this == boot),
        Err(error) if is_resource_exhaustion(&error) => {
            let path = "/proc/sys/kernel/random/boot_id";
            Err(FileError::new("read", path, error))
        }
        Err(_) => Ok(false),
    }
}

/// Converts an error of reading `/proc`.
fn proc_error(pid: u32, error: io::Error) -> FileError {
    FileError::new("inspect", format!("/proc/{pid}"), error)
}

/// A box as recovered from disk.
struct RecoveredBox {
    bx: MicroBox,
    shim: LastShim,
}

/// The shim of a box's last run, as found on opening.
enum LastShim {
    /// No shim, or one whose outcome is on disk.
    None,
    /// A live shim, with its full identity.
    Alive(PidRecord),
    /// A shim that has ended.
    Dead(PidRecord),
    /// The `shim.pid` cannot be read, and no shim of the box is running.
    Unreadable(FileError),
}

/// Reads all boxes from disk.
fn read_all(core: &Core, ids: Vec<BoxId>) -> Result<Vec<RecoveredBox>, FileError> {
    let mut running = RunningShims::default();
    ids.into_iter()
        .map(|id| read_one(core, id, &mut running))
        .collect()
}

/// Reserves the users of the boxes, those in the records first.
fn reserve_uids(core: &Core, found: &[RecoveredBox]) -> Result<(), RuntimeError> {
    let (recorded, others): (Vec<_>, Vec<_>) =
        found.iter().partition(|found| found.bx.uid().is_some());
    for RecoveredBox { bx, .. } in recorded.into_iter().chain(others) {
        bx.set_uid(|payload, uid| core.uids.reserve(payload, uid))?;
    }
    Ok(())
}

/// Reads a box from disk and finds its shim.
fn read_one(core: &Core, id: BoxId, running: &mut RunningShims) -> Result<RecoveredBox, FileError> {
    let dir = core.home.box_dir(&id);
    let (record, damage) = match BoxRecord::read(&dir) {
        Ok(record) => (BoxRecord { id, ..record }, None),
        Err(error) if is_resource_exhaustion(&error.source) => return Err(error),
        Err(error) => {
            tracing::error!(id = id.as_str(), error = %with_causes(&error), "cannot read box.json; the box is damaged");
            (placeholder_record(id), Some(error))
        }
    };
    let (events, due) = (Arc::clone(&core.events), Arc::clone(&core.due));
    let bx = MicroBox::new(record, damage, dir, events, due);
    let shim = find_shim(&bx, running)?;
    Ok(RecoveredBox { bx, shim })
}

/// Returns a record for a box whose `box.json` cannot be read. Its id contains the time of its
/// creation.
fn placeholder_record(id: BoxId) -> BoxRecord {
    let created_at = Ulid::from_string(&id)
        .ok()
        .and_then(|id| Timestamp::try_from(id.datetime()).ok());
    BoxRecord::new(id, created_at.unwrap_or_default(), BoxSpec::default())
}

/// Finds the shim of the box's last run by its `shim.pid`, or else among all processes.
fn find_shim(bx: &MicroBox, running: &mut RunningShims) -> Result<LastShim, FileError> {
    let dead = match bx.dir().shim_record() {
        Ok(Some(record)) => match identify(&record, bx) {
            Ok(Some(found)) => return Ok(LastShim::Alive(found)),
            Ok(None) if bx.knows_exit_of(&record) => LastShim::None,
            Ok(None) => LastShim::Dead(record),
            Err(error) => return Err(proc_error(record.pid, error)),
        },
        Ok(None) => LastShim::None,
        Err(error) if is_resource_exhaustion(&error.source) => return Err(error),
        Err(error) => LastShim::Unreadable(error),
    };
    // A payload can remove or replace the record. Only the process table proves that no shim runs.
    let known = running.of(bx.id(), bx.dir().path());
    let known = known.map_err(|source| FileError::new("list", "/proc", source))?;
    let Some(pid) = known else {
        return Ok(dead);
    };
    let record = PidRecord::of(pid).map_err(|error| proc_error(pid, error))?;
    let is_ours = is_shim_of(pid, bx).map_err(|error| proc_error(pid, error))?;
    let Some(record) = record.filter(|_| is_ours) else {
        return Ok(dead);
    };
    tracing::warn!(
        id = bx.id().as_str(),
        pid,
        "shim.pid does not identify the running shim; repairing it"
    );
    repair_pid_record(bx, &record);
    Ok(LastShim::Alive(record))
}

/// Returns the record with its full identity if the shim is alive. The process must be a shim of
/// this box: a payload may have written another pid, and the process of a record without identity
/// may be any process by now.
fn identify(record: &PidRecord, bx: &MicroBox) -> io::Result<Option<PidRecord>> {
    let with_identity = |identity| PidRecord {
        pid: record.pid,
        identity: Some(identity),
    };
    match record.lookup()? {
        PidLookup::Alive(identity) => {
            // The home may have been moved since.
            let shim = membership::shim_of(record.pid)?;
            let is_ours = shim.is_some_and(|(id, _)| id == *bx.id());
            Ok(is_ours.then(|| with_identity(identity)))
        }
        PidLookup::Unverified(identity) if is_shim_of(record.pid, bx)? => {
            let found = with_identity(identity);
            repair_pid_record(bx, &found);
            Ok(Some(found))
        }
        PidLookup::Unverified(_) | PidLookup::Reused | PidLookup::NotFound => Ok(None),
    }
}

/// Returns whether the process is the shim of this box, by its arguments.
fn is_shim_of(pid: u32, bx: &MicroBox) -> io::Result<bool> {
    let shim = membership::shim_of(pid)?;
    Ok(shim.is_some_and(|(id, dir)| id == *bx.id() && dir == bx.dir().path()))
}

/// Writes the `shim.pid` again.
fn repair_pid_record(bx: &MicroBox, record: &PidRecord) {
    if let Err(error) = bx.dir().write_shim_record(record) {
        tracing::warn!(id = bx.id().as_str(), error = %with_causes(&error), "cannot repair shim.pid");
    }
}

/// The running shims according to `/proc`, read once.
#[derive(Default)]
struct RunningShims(Option<HashMap<(String, PathBuf), u32>>);

impl RunningShims {
    /// Returns the pid of the shim of this box.
    fn of(&mut self, id: &str, dir: &Path) -> io::Result<Option<u32>> {
        let shims = match &mut self.0 {
            Some(shims) => shims,
            unknown => unknown.insert(Self::look_up()?),
        };
        Ok(shims.get(&(id.to_owned(), dir.to_owned())).copied())
    }

    /// Reads the shims of all boxes from `/proc`.
    fn look_up() -> io::Result<HashMap<(String, PathBuf), u32>> {
        let shims =
            procfs::pids()?.map(|pid| Ok(membership::shim_of(pid)?.map(|shim| (shim, pid))));
        shims.filter_map(Result::transpose).collect()
    }
}
