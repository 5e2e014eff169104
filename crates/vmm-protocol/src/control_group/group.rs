use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::cgroupfs::{PROCS_FILE, is_removed, write_setting};
use super::controller::{Controller, Version};
use super::hierarchy::Hierarchies;
use super::new_group::NewGroup;
use super::walk::{read_at, walk};
use crate::{BoxDir, FileError};

/// The control groups of one box's payload: a single one, or with version 1 of `cgroups(7)` one per
/// controller.
///
/// They limit the resources of the payload and all its descendants, and list every one of these
/// processes, even those that have changed their session or environment. They outlive a shim that
/// is killed with SIGKILL; the runtime then [removes](Self::remove) them.
///
/// They are named `vmm-box-<box>.<pid of the shim>`. The runtime finds them by name, even if the
/// payload has changed the record in the box directory.
///
/// All methods block on the file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlGroup {
    pub(super) dirs: Vec<PathBuf>,
}

const NAME_PREFIX: &str = ControlGroup::NAME_PREFIX;

/// The control groups of the payload of this process. A shim has at most one payload.
static OWN_PAYLOAD: Mutex<Option<ControlGroup>> = Mutex::new(None);

/// The kernel can take a moment to release a group after its last process has exited, and a payload
/// can have created very many groups.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(1);

const REMOVE_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The number of groups that one [sweep](ControlGroup::sweep) visits per hierarchy, which takes
/// less than a second.
const MAX_SWEPT_GROUPS: usize = 4096;

/// The number of groups that [`ControlGroup::pids`] visits per hierarchy, which takes a few
/// seconds.
const MAX_LISTED_GROUPS: usize = 100_000;

impl ControlGroup {
    /// The prefix of the names of all control groups of boxes.
    pub const NAME_PREFIX: &str = "vmm-box-";

    /// Returns the control group in a directory of version 2, which a guest has for each container.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let dirs = vec![dir.into()];
        Self { dirs }
    }

    /// Checks that shims started by this process can create control groups for CPU time, memory and
    /// processes. Creates such groups, and removes them.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the reason why a group cannot be created.
    pub fn check() -> Result<(), FileError> {
        let name = format!("{NAME_PREFIX}check.{}", process::id());
        let limits = [
            (Controller::Cpu, 1),
            (Controller::Memory, 1 << 30),
            (Controller::Pids, 1),
        ];
        let hierarchies = Hierarchies::read()?;
        let groups =
            limits.map(|(controller, _)| NewGroup::locate(&hierarchies, controller, &name));
        for (group, (controller, amount)) in groups.into_iter().zip(limits) {
            let group = group?;
            let created = group.create(controller, amount);
            let created_dirs = Self {
                dirs: vec![group.dir],
            };
            let removed = created_dirs.remove();
            created.and(removed)?;
        }
        Ok(())
    }

    /// Creates the groups for the payload of the calling process, a shim with the box directory
    /// `dir`. Also returns the limits for which no group could be created, each with the reason.
    ///
    /// Records the groups before it creates them, so that none is lost if the shim is killed.
    ///
    /// # Errors
    ///
    /// [`FileError`] if the hierarchies cannot be read, or if the record cannot be written.
    pub fn create(
        dir: &Path,
        limits: &[(Controller, u64)],
    ) -> Result<(Self, Vec<(Controller, FileError)>), FileError> {
        let name = group_name(dir, process::id());
        let mut failures = Vec::new();
        let mut new_groups = Vec::new();
        let hierarchies = Hierarchies::read()?;
        for (controller, amount) in limits.iter().copied() {
            match NewGroup::locate(&hierarchies, controller, &name) {
                Ok(group) => new_groups.push((group, controller, amount)),
                Err(error) => failures.push((controller, error)),
            }
        }
        let mut dirs: Vec<_> = new_groups
            .iter()
            .map(|(group, ..)| group.dir.clone())
            .collect();
        dirs.dedup();
        let mut control_group = Self { dirs };
        BoxDir::new(dir).write_control_groups(&control_group.dirs)?;
        control_group.set_of_this_process();
        let mut created = HashSet::new();
        for (group, controller, amount) in new_groups {
            match group.create(controller, amount) {
                Ok(()) => _ = created.insert(group.dir),
                Err(error) => failures.push((controller, error)),
            }
        }
        let unlimited = control_group
            .dirs
            .extract_if(.., |dir| !created.contains(dir));
        let unlimited = Self {
            dirs: unlimited.collect(),
        };
        // The record still leads to those that cannot be removed.
        let _ = unlimited.remove();
        Ok((control_group, failures))
    }

    /// Returns the groups that the calling process has [created](Self::create) for its payload.
    ///
    /// Does not read the record, which the payload can change.
    pub fn of_this_process() -> Option<Self> {
        let own = OWN_PAYLOAD.lock().unwrap_or_else(PoisonError::into_inner);
        own.clone()
    }

    pub(super) fn set_of_this_process(&self) {
        let mut own = OWN_PAYLOAD.lock().unwrap_or_else(PoisonError::into_inner);
        *own = Some(self.clone());
    }

    /// Returns the directories of the groups, for a process that enters them.
    pub fn into_dirs(self) -> Vec<PathBuf> {
        self.dirs
    }

    /// Returns the pids of all processes in the groups, including groups that the payload has
    /// created within.
    ///
    /// # Errors
    ///
    /// [`FileError`] if not all processes can be listed.
    pub fn pids(&self) -> Result<Vec<u32>, FileError> {
        let mut pids = Vec::new();
        for dir in &self.dirs {
            let list = |group: BorrowedFd<'_>| {
                pids.extend(Members(group).pids()?);
                Ok(())
            };
            let walked = walk(dir, MAX_LISTED_GROUPS, list, |_, _| Ok(()));
            if !walked.map_err(|error| FileError::new("read", dir, error))? {
                let message = "the payload has created too many nested groups";
                let error = io::Error::new(io::ErrorKind::TimedOut, message);
                return Err(FileError::new("read", dir, error));
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Calls `visit` with the members of each group, including groups that the payload has created
    /// within. Removes those within that are empty.
    ///
    /// Returns whether it has visited all groups. A payload can create any number of groups, so one
    /// sweep visits a bounded number of them. The next sweep finds fewer, and visits others once
    /// the members of the visited groups have exited.
    ///
    /// # Errors
    ///
    /// [`FileError`] if a group cannot be read, or if `visit` fails.
    pub fn sweep(
        &self,
        mut visit: impl FnMut(Members<'_>) -> io::Result<()>,
    ) -> Result<bool, FileError> {
        let mut is_complete = true;
        for dir in &self.dirs {
            let swept = sweep_dir(dir, |group| visit(Members(group)));
            is_complete &= swept.map_err(|error| FileError::new("sweep", dir, error))?;
        }
        Ok(is_complete)
    }

    /// Kills all processes in the groups in one step where the kernel supports it: version 2 of
    /// control groups, Linux 5.14.
    ///
    /// Also forbids forks in a group with the controller `pids`. The caller can then kill the
    /// remaining processes one by one, and no new ones appear.
    pub fn kill(&self) {
        for dir in &self.dirs {
            // Fails where the kernel does not have these files.
            let _ = write_setting(&dir.join("pids.max"), "0");
            let _ = write_setting(&dir.join("cgroup.kill"), "1");
        }
    }

    /// Returns how many processes in the groups the kernel has killed because their memory limit was
    /// reached. Needs Linux 4.13.
    pub fn oom_kills(&self) -> u64 {
        let files = [Version::V1, Version::V2].map(Controller::oom_kills_file);
        let counters = self
            .dirs
            .iter()
            .flat_map(|dir| files.map(|file| dir.join(file)))
            .filter_map(|path| fs::read_to_string(path).ok());
        let kills = counters.into_iter().filter_map(|text| {
            let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            kills.and_then(|kills| kills.trim().parse::<u64>().ok())
        });
        kills.sum()
    }

    /// Removes the groups, and all groups that the payload has created within. Waits for up to one
    /// second until the kernel releases them; slightly longer if the payload has created very many.
    /// If the call fails, the groups removed so far stay removed.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the group that cannot be removed. Its source has the kind
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if a process or another group is still in the
    /// group.
    pub fn remove(&self) -> Result<(), FileError> {
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        for dir in &self.dirs {
            let remove_error = |error| FileError::new("remove", dir, error);
            loop {
                let is_complete = sweep_dir(dir, |_| Ok(())).map_err(remove_error)?;
                match fs::remove_dir(dir) {
                    Ok(()) => break,
                    Err(error) if is_removed(&error) => break,
                    Err(error)
                        if error.kind() != io::ErrorKind::ResourceBusy
                            || Instant::now() >= deadline =>
                    {
                        return Err(remove_error(error));
                    }
                    // A process is still in the group.
                    Err(_) if is_complete => thread::sleep(REMOVE_POLL_INTERVAL),
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }
}

/// The processes directly in one group, without those in groups within it.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a>(BorrowedFd<'a>);

impl Members<'_> {
    /// Returns the pids of the current members. Each call reads them again.
    ///
    /// # Errors
    ///
    /// The error of opening or reading the list. If the group was removed, `NotFound` or `ENODEV`.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        match read_at(self.0, PROCS_FILE) {
            Ok(list) => Ok(list.lines().filter_map(|pid| pid.parse().ok()).collect()),
            // In version 2, the domain of a threaded group lists its processes.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Implements [`ControlGroup::sweep`] for one hierarchy.
fn sweep_dir(dir: &Path, visit: impl FnMut(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<bool> {
    walk(dir, MAX_SWEPT_GROUPS, visit, |parent, name| {
        // Fails for a group in use. The removal of the outermost group reports any other cause.
        let _ = unlinkat(parent, name, AtFlags::REMOVEDIR);
        Ok(())
    })
}

/// Returns the name of the groups that the shim with this pid creates for the box in `dir`.
pub(super) fn group_name(dir: &Path, pid: u32) -> String {
    let name = dir.file_name().unwrap_or_default();
    format!("{NAME_PREFIX}{}.{pid}", name.to_string_lossy())
}
