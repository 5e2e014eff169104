use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::ENODEV;
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::hierarchy::{Hierarchy, Version};
use super::setting::Controller;
use crate::durable::{LONGEST_RECORD, read_file, write_file_unsynced};
use crate::{FILES, FileError, is_shortage};

/// The control groups of one box's payload: one, or with version 1 of `cgroups(7)` one for each
/// kind of resource.
///
/// They bound what the payload takes together with all that descends from it, and know every one
/// of these processes, whatever it has done to its session and environment. They outlive a shim
/// that is killed; whoever finds that [removes](Self::remove) them.
///
/// All methods read and write files, and so block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlGroup {
    dirs: Vec<PathBuf>,
}

const PREFIX: &str = "vmm-box-";

/// How long the kernel may take to let go of a group whose last process has ended.
const PATIENCE: Duration = Duration::from_secs(1);

impl ControlGroup {
    /// Whether shims that this process starts can make groups for processors, memory and processes:
    /// makes them, and removes them. Blocks.
    ///
    /// # Errors
    ///
    /// [`FileError`], with what stands in the way.
    pub fn check() -> Result<(), FileError> {
        let name = format!("{PREFIX}check.{}", process::id());
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

    /// Makes the groups for a payload of this process, and records them in the box's directory
    /// first: nothing may be left that nobody knows of. Says which limits got none, and why.
    pub(crate) fn create(
        dir: &Path,
        limits: &[(Controller, u64)],
    ) -> Result<(Self, Vec<(Controller, FileError)>), FileError> {
        let name = format!("{}{}", prefix_of(dir), process::id());
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

    /// Of the last run of the box with this directory, if it still has one. The record is believed
    /// only where it names control groups that were made for this box: a payload can write to it.
    ///
    /// # Errors
    ///
    /// [`FileError`], where for want of descriptors or memory it cannot be told.
    pub fn of_box(dir: &Path) -> Result<Option<Self>, FileError> {
        let path = dir.join(FILES.control_group);
        let text = match read_file(&path, LONGEST_RECORD) {
            Ok(text) => text,
            Err(error) if is_shortage(&error) => return Err(FileError::new("read", path, error)),
            Err(_) => return Ok(None),
        };
        let text = String::from_utf8_lossy(&text);
        let prefix = prefix_of(dir);
        let is_of_this_box = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let pid = name.and_then(|name| name.strip_prefix(prefix.as_str()));
            pid.is_some_and(|pid| pid.parse::<u32>().is_ok()) && is_control_group(path)
        };
        let dirs: Vec<_> = text
            .lines()
            .map(PathBuf::from)
            .filter(is_of_this_box)
            .collect();
        Ok((!dirs.is_empty()).then_some(Self { dirs }))
    }

    pub(crate) fn into_dirs(self) -> Vec<PathBuf> {
        self.dirs
    }

    /// The processes in it now.
    ///
    /// # Errors
    ///
    /// [`FileError`], when not all of them could be listed.
    pub fn pids(&self) -> Result<Vec<u32>, FileError> {
        let mut pids = Vec::new();
        for path in self.tree()?.iter().map(|dir| dir.join(PROCESSES)) {
            match fs::read_to_string(&path) {
                Ok(list) => pids.extend(list.lines().filter_map(|pid| pid.parse::<u32>().ok())),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(FileError::new("read", path, error)),
            }
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

    /// The payload may have divided it: the innermost groups first.
    fn tree(&self) -> Result<Vec<PathBuf>, FileError> {
        let mut tree = self.dirs.clone();
        let mut seen = 0;
        while let Some(dir) = tree.get(seen) {
            match groups_in(dir) {
                Ok(within) => tree.extend(within),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(FileError::new("read", dir, error)),
            }
            seen += 1;
        }
        tree.reverse();
        Ok(tree)
    }

    /// Whether the kernel has killed a process of it because its memory was used up. Linux 4.13.
    pub(crate) fn has_run_out_of_memory(&self) -> bool {
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
        for dir in self.tree()? {
            while let Err(error) = fs::remove_dir(&dir) {
                if is_gone(&error) {
                    break;
                }
                if error.kind() != io::ErrorKind::ResourceBusy || Instant::now() >= deadline {
                    return Err(FileError::new("remove", dir, error));
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

/// What the names of the groups of this box begin with; the pid of their shim follows.
fn prefix_of(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default();
    format!("{PREFIX}{}.", name.to_string_lossy())
}

fn groups_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut groups = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            groups.push(entry.path());
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
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV)
}

fn is_control_group(path: &Path) -> bool {
    statfs(path).is_ok_and(|file_system| {
        let kind = file_system.filesystem_type();
        kind == CGROUP_SUPER_MAGIC || kind == CGROUP2_SUPER_MAGIC
    })
}

/// The processes of a group; to enter it is to write to this.
pub(crate) const PROCESSES: &str = "cgroup.procs";

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
            dir: hierarchy.parent(controller)?.join(name),
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
