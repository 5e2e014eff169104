use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::{ENODEV, EOPNOTSUPP};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use rustix::fs::{AtFlags, unlinkat};

use super::hierarchy::{Hierarchy, Version};
use super::setting::Controller;
use super::walk::{read_at, walk};
use crate::files::{LONGEST_RECORD, read_file, write_file_unsynced};
use crate::{FILES, FileError, is_resource_exhaustion};

/// The control groups of one box's payload: one, or with version 1 of `cgroups(7)` one for each
/// kind of resource.
///
/// They bound what the payload takes together with all that descends from it, and know every one
/// of these processes, whatever it has done to its session and environment. They outlive a shim
/// that is killed; the runtime then [removes](Self::remove) them.
///
/// Their name tells their box and their shim: `vmm-box-<box>.<pid>`. So the runtime finds them in
/// the hierarchies, whatever the payload does to their record in the box directory.
///
/// All methods read and write files, and so block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlGroup {
    dirs: Vec<PathBuf>,
}

/// A shim has one payload.
static OF_THIS_PROCESS: OnceLock<ControlGroup> = OnceLock::new();

/// How long the kernel may take to let go of a group whose last process has ended.
const PATIENCE: Duration = Duration::from_secs(1);

impl ControlGroup {
    /// What the names of all groups of boxes begin with.
    pub const NAME_PREFIX: &str = "vmm-box-";

    /// Whether shims that this process starts can make groups for processors, memory and processes:
    /// makes them, and removes them. Blocks.
    ///
    /// # Errors
    ///
    /// [`FileError`], with what stands in the way.
    pub fn check() -> Result<(), FileError> {
        let name = format!("{}check.{}", Self::NAME_PREFIX, process::id());
        let limits = [
            (Controller::Cpu, 1),
            (Controller::Memory, 1 << 30),
            (Controller::Pids, 1),
        ];
        let places = limits.map(|(controller, _)| Place::of(controller, &name));
        for (place, (controller, amount)) in places.into_iter().zip(limits) {
            let place = place?;
            let made = place.make(controller, amount);
            let checked = Self {
                dirs: vec![place.dir],
            };
            let removed = checked.remove();
            made.and(removed)?;
        }
        Ok(())
    }

    /// Makes the groups for the payload of this process, and records them first: nothing may be
    /// left that nobody knows of. Says which limits got none, and why.
    pub fn create(
        dir: &Path,
        limits: &[(Controller, u64)],
    ) -> Result<(Self, Vec<(Controller, FileError)>), FileError> {
        let name = name_of(dir, process::id());
        let mut refused = Vec::new();
        let mut places = Vec::new();
        for (controller, amount) in limits.iter().copied() {
            match Place::of(controller, &name) {
                Ok(place) => places.push((place, controller, amount)),
                Err(error) => refused.push((controller, error)),
            }
        }
        let mut dirs: Vec<_> = places.iter().map(|(place, ..)| place.dir.clone()).collect();
        dirs.dedup();
        let mut group = Self { dirs };
        group.record(dir)?;
        let _ = OF_THIS_PROCESS.set(group.clone());
        let mut made = HashSet::new();
        for (place, controller, amount) in places {
            match place.make(controller, amount) {
                Ok(()) => _ = made.insert(place.dir),
                Err(error) => refused.push((controller, error)),
            }
        }
        let useless = group.dirs.extract_if(.., |dir| !made.contains(dir));
        let useless = Self {
            dirs: useless.collect(),
        };
        // Of a group that was not even made, too; what is left is on record.
        let _ = useless.remove();
        Ok((group, refused))
    }

    fn record(&self, dir: &Path) -> Result<(), FileError> {
        let mut text = Vec::new();
        for dir in &self.dirs {
            text.extend_from_slice(dir.as_os_str().as_encoded_bytes());
            text.push(b'\n');
        }
        write_file_unsynced(&dir.join(FILES.control_group), &text)
    }

    /// Returns what this process has made for its payload. Reads no file: the payload can write to
    /// the record.
    pub fn of_this_process() -> Option<&'static Self> {
        OF_THIS_PROCESS.get()
    }

    /// Returns the groups that are left of the box with this directory.
    ///
    /// Lists the groups beside them: use [`of_boxes`](Self::of_boxes) for many boxes, and
    /// [`of_shim`](Self::of_shim) where the shim is known.
    ///
    /// # Errors
    ///
    /// [`FileError`], where for want of descriptors or memory it cannot be told.
    pub fn of_box(dir: &Path) -> Result<Option<Self>, FileError> {
        Ok(Self::of_boxes([dir])?.remove(dir))
    }

    /// Returns the groups that are left of each box, by its directory; boxes without groups are
    /// absent.
    ///
    /// Groups are found by their names, where shims of the calling process make theirs. A shim of
    /// an earlier runtime may have made its groups elsewhere; there only the record in the box
    /// directory leads to them. The record is a hint, because a payload can write to it: only
    /// control groups that are named after the box are taken from it.
    ///
    /// # Errors
    ///
    /// [`FileError`], where for want of descriptors or memory it cannot be told.
    pub fn of_boxes<'a>(
        dirs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<HashMap<&'a Path, Self>, FileError> {
        let mut by_box: HashMap<OsString, Vec<PathBuf>> = HashMap::new();
        for parent in parents()? {
            // Only of a parent that was removed, or is not to be read, the groups are not known.
            let Some(groups) = unless_short(groups_in(&parent), &parent)? else {
                continue;
            };
            for group in groups {
                if let Some((name, _)) = group.to_str().and_then(parse_name) {
                    let groups = by_box.entry(name.into()).or_default();
                    groups.push(parent.join(&group));
                }
            }
        }
        let mut found = HashMap::new();
        for dir in dirs {
            let name = dir.file_name().unwrap_or_default();
            let mut groups = by_box.get(name).cloned().unwrap_or_default();
            groups.extend(recorded(dir)?.into_iter().filter(|path| {
                let group = path
                    .file_name()
                    .and_then(|group| parse_name(group.to_str()?));
                group.is_some_and(|(owner, _)| name == owner) && is_control_group(path)
            }));
            found.extend(Self::of_dirs(groups).map(|group| (dir, group)));
        }
        Ok(found)
    }

    /// Returns the groups that are left of one run of a box: that of the shim with this pid.
    ///
    /// As [`of_boxes`](Self::of_boxes), but the cost does not depend on how many groups there are.
    ///
    /// # Errors
    ///
    /// [`FileError`], where for want of descriptors or memory it cannot be told.
    pub fn of_shim(dir: &Path, pid: u32) -> Result<Option<Self>, FileError> {
        let name = name_of(dir, pid);
        let recorded = recorded(dir)?.into_iter();
        let recorded = recorded.filter(|path| path.file_name().is_some_and(|it| *it == *name));
        let groups = parents()?.into_iter().map(|parent| parent.join(&name));
        Ok(Self::of_dirs(
            groups.chain(recorded).filter(|path| is_control_group(path)),
        ))
    }

    fn of_dirs(dirs: impl IntoIterator<Item = PathBuf>) -> Option<Self> {
        let mut dirs: Vec<_> = dirs.into_iter().collect();
        dirs.sort_unstable();
        dirs.dedup();
        (!dirs.is_empty()).then_some(Self { dirs })
    }

    /// Returns the directories of the groups, for a process to enter them.
    pub fn into_dirs(self) -> Vec<PathBuf> {
        self.dirs
    }

    /// The processes in it now.
    ///
    /// # Errors
    ///
    /// [`FileError`], when not all of them could be listed.
    pub fn pids(&self) -> Result<Vec<u32>, FileError> {
        let mut pids = Vec::new();
        for dir in &self.dirs {
            let list = |group: BorrowedFd<'_>| match read_at(group, PROCESSES) {
                Ok(list) => {
                    pids.extend(list.lines().filter_map(|pid| pid.parse::<u32>().ok()));
                    Ok(())
                }
                // In version 2, the processes of a threaded group are listed in its domain's.
                Err(error) if error.raw_os_error() == Some(EOPNOTSUPP) => Ok(()),
                Err(error) => Err(error),
            };
            walk(dir, list, |_, _| Ok(())).map_err(|error| FileError::new("read", dir, error))?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills all that is in it now, at once where the kernel can: version 2, Linux 5.14. Where it
    /// limits processes, no member can fork any more, so that killing them one by one comes to an end.
    pub fn kill(&self) {
        for dir in &self.dirs {
            // There are no such files elsewhere.
            let _ = set(&dir.join("pids.max"), "0");
            let _ = set(&dir.join("cgroup.kill"), "1");
        }
    }

    /// Whether the kernel has killed a process of it because its memory was used up. Linux 4.13.
    pub fn has_run_out_of_memory(&self) -> bool {
        let files = [Version::V1, Version::V2].map(Controller::kills_file);
        let counted = self
            .dirs
            .iter()
            .flat_map(|dir| files.map(|file| dir.join(file)))
            .filter_map(|path| fs::read_to_string(path).ok());
        counted.into_iter().any(|text| {
            let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            kills.is_some_and(|kills| kills.trim() != "0")
        })
    }

    /// Removes it, when its last process has ended. Blocks for a second at most.
    ///
    /// # Errors
    ///
    /// [`FileError`] with what could not be removed; `ResourceBusy` where a process is still in it.
    pub fn remove(&self) -> Result<(), FileError> {
        let deadline = Instant::now() + PATIENCE;
        for dir in &self.dirs {
            let failed = |error| FileError::new("remove", dir, error);
            walk(
                dir,
                |_| Ok(()),
                |parent, name| {
                    let remove = || Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?);
                    until_free(deadline, remove)
                },
            )
            .map_err(failed)?;
            until_free(deadline, || fs::remove_dir(dir)).map_err(failed)?;
        }
        Ok(())
    }
}

/// Goes on while a process is still in the group.
fn until_free(deadline: Instant, remove: impl Fn() -> io::Result<()>) -> io::Result<()> {
    loop {
        match remove() {
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            removed => return removed,
        }
    }
}

/// The name of the groups that the shim with this pid makes for the box with this directory.
fn name_of(dir: &Path, pid: u32) -> String {
    let name = dir.file_name().unwrap_or_default();
    format!(
        "{}{}.{pid}",
        ControlGroup::NAME_PREFIX,
        name.to_string_lossy()
    )
}

/// The name of the box's directory, and the pid of its shim.
fn parse_name(group: &str) -> Option<(&str, u32)> {
    let (name, pid) = group
        .strip_prefix(ControlGroup::NAME_PREFIX)?
        .rsplit_once('.')?;
    Some((name, pid.parse().ok()?))
}

/// Where shims of this process make their groups.
fn parents() -> Result<Vec<PathBuf>, FileError> {
    let found = Hierarchy::of_each(Controller::ALL);
    let found = unless_short(found, Path::new("/proc/self/cgroup"))?;
    let mut parents: Vec<_> = found
        .into_iter()
        .flatten()
        .filter_map(|hierarchy| hierarchy.parent().map(Path::to_owned))
        .collect();
    parents.sort_unstable();
    parents.dedup();
    Ok(parents)
}

/// The paths that the record in the box's directory has.
fn recorded(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let path = dir.join(FILES.control_group);
    let text = unless_short(read_file(&path, LONGEST_RECORD), &path)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().map(PathBuf::from).collect())
}

/// `None` for every failure but want of descriptors or memory, which says nothing.
fn unless_short<T>(read: io::Result<T>, path: &Path) -> Result<Option<T>, FileError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if is_resource_exhaustion(&error) => Err(FileError::new("read", path, error)),
        Err(_) => Ok(None),
    }
}

/// The names of the groups right in this one.
fn groups_in(dir: &Path) -> io::Result<Vec<OsString>> {
    let mut groups = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            groups.push(entry.file_name());
        }
    }
    Ok(groups)
}

/// Never makes the file: of one that is not there, the kernel would say that it may not be made.
pub(super) fn set(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

/// A group was removed meanwhile, perhaps between opening its file and reading that.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV)
}

fn is_control_group(path: &Path) -> bool {
    statfs(path).is_ok_and(|file_system| {
        let kind = file_system.filesystem_type();
        kind == CGROUP_SUPER_MAGIC || kind == CGROUP2_SUPER_MAGIC
    })
}

/// The processes of a group; to enter it is to write to this.
pub const PROCESSES: &str = "cgroup.procs";

struct Place {
    version: Version,
    dir: PathBuf,
}

impl Place {
    fn of(controller: Controller, name: &str) -> Result<Self, FileError> {
        let failed = |source| FileError::new("use", "/proc/self/cgroup", source);
        let hierarchy = Hierarchy::of(controller).map_err(failed)?;
        Ok(Self {
            version: hierarchy.version,
            dir: hierarchy.prepare(controller)?.join(name),
        })
    }

    fn make(&self, controller: Controller, amount: u64) -> Result<(), FileError> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FileError::new("make", &self.dir, error));
            }
            // By the other controller in this hierarchy.
            _ => {}
        }
        for setting in controller.settings(self.version, amount) {
            let path = self.dir.join(setting.file);
            match set(&path, &setting.value.to_string()) {
                Err(error) if setting.is_optional && error.kind() == io::ErrorKind::NotFound => {}
                // What is around it is bounded more tightly already.
                Err(error)
                    if setting.is_bounded_above && error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(FileError::new("write", path, error)),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if the kernel had made these files in the group.
    fn made(files: &[&str]) -> (tempfile::TempDir, Result<(), FileError>) {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let place = Place {
            version: Version::V2,
            dir: dir.path().to_owned(),
        };
        let outcome = place.make(Controller::Memory, 1 << 20);
        (dir, outcome)
    }

    #[test]
    fn a_kernel_without_limits_of_swap_still_limits_memory() {
        let (dir, outcome) = made(&["memory.max"]);
        outcome.unwrap();
        let limit = fs::read_to_string(dir.path().join("memory.max"));
        assert_eq!(limit.unwrap(), "1048576");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let (_, outcome) = made(&[]);
        assert!(outcome.unwrap_err().path.ends_with("memory.max"));
    }
}
