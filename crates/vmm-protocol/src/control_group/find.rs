use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::cgroupfs::{child_groups, is_control_group};
use super::controller::Controller;
use super::group::{ControlGroup, group_name};
use super::hierarchy::{Hierarchies, proc_path};
use crate::procfs::mounts;
use crate::{BoxDir, FileError, is_resource_exhaustion};

/// How a runtime finds the groups that shims have created.
impl ControlGroup {
    /// Returns the existing groups of the box with this directory, or `None` if it has none.
    ///
    /// The call lists all sibling groups. Use [`of_boxes`](Self::of_boxes) for many boxes, and
    /// [`of_shim`](Self::of_shim) if the pid of the shim is known.
    ///
    /// # Errors
    ///
    /// [`FileError`] if file descriptors or memory are exhausted.
    pub fn of_box(dir: &Path) -> Result<Option<Self>, FileError> {
        Ok(Self::of_boxes([dir])?.remove(dir))
    }

    /// Returns the existing groups of each box, by box directory. The map has no entry for a box
    /// without groups.
    ///
    /// The call finds groups by name in the directories in which shims of the calling process
    /// create theirs. A shim of an earlier runtime may have created its groups elsewhere; only the
    /// record in the box directory leads to those. Because a payload can change the record, it is
    /// only a hint: paths other than control groups named after the box are ignored.
    ///
    /// # Errors
    ///
    /// [`FileError`] if file descriptors or memory are exhausted.
    pub fn of_boxes<'a>(
        dirs: impl IntoIterator<Item = &'a Path>,
    ) -> Result<HashMap<&'a Path, Self>, FileError> {
        let mut by_box: HashMap<OsString, Vec<PathBuf>> = HashMap::new();
        for parent in parents()? {
            // The parent may have been removed, or be unreadable.
            let Some(groups) = unless_exhausted(child_groups(&parent), &parent)? else {
                continue;
            };
            for group in groups {
                if let Some((name, _)) = group.to_str().and_then(parse_group_name) {
                    let groups = by_box.entry(name.into()).or_default();
                    groups.push(parent.join(&group));
                }
            }
        }
        let mut found = HashMap::new();
        for dir in dirs {
            let name = dir.file_name().unwrap_or_default();
            let mut groups = by_box.get(name).cloned().unwrap_or_default();
            groups.extend(read_record(dir)?.into_iter().filter(|path| {
                let group = path
                    .file_name()
                    .and_then(|group| parse_group_name(group.to_str()?));
                group.is_some_and(|(owner, _)| name == owner) && is_control_group(path)
            }));
            found.extend(Self::from_dirs(groups).map(|group| (dir, group)));
        }
        Ok(found)
    }

    /// Returns the existing groups of one run of a box: those that the shim with this pid created.
    ///
    /// Like [`of_boxes`](Self::of_boxes), but the cost does not depend on the number of groups.
    ///
    /// # Errors
    ///
    /// [`FileError`] if file descriptors or memory are exhausted.
    pub fn of_shim(dir: &Path, pid: u32) -> Result<Option<Self>, FileError> {
        let name = group_name(dir, pid);
        let recorded = read_record(dir)?.into_iter();
        let recorded = recorded.filter(|path| path.file_name().is_some_and(|it| *it == *name));
        let by_name = parents()?.into_iter().map(|parent| parent.join(&name));
        Ok(Self::from_dirs(
            by_name
                .chain(recorded)
                .filter(|path| is_control_group(path)),
        ))
    }

    fn from_dirs(dirs: impl IntoIterator<Item = PathBuf>) -> Option<Self> {
        let mut dirs: Vec<_> = dirs.into_iter().collect();
        dirs.sort_unstable();
        dirs.dedup();
        (!dirs.is_empty()).then_some(Self { dirs })
    }

    /// Returns the value of each group, by the paths that `/proc/<pid>/cgroup` shows for the
    /// members of the group. For members of a group within, it shows a path below these.
    ///
    /// # Errors
    ///
    /// [`FileError`] if file descriptors or memory are exhausted.
    pub fn by_proc_path<'a, T: Copy>(
        groups: impl IntoIterator<Item = (&'a Self, T)>,
    ) -> Result<HashMap<PathBuf, T>, FileError> {
        let path = Path::new("/proc/self/mountinfo");
        let mounts = unless_exhausted(mounts(), path)?.unwrap_or_default();
        let mut by_path = HashMap::new();
        for (group, value) in groups {
            let paths = group.dirs.iter().filter_map(|dir| proc_path(dir, &mounts));
            by_path.extend(paths.map(|path| (path, value)));
        }
        Ok(by_path)
    }
}

/// Returns the name of the box directory and the pid of the shim.
pub(crate) fn parse_group_name(group: &str) -> Option<(&str, u32)> {
    let (name, pid) = group
        .strip_prefix(ControlGroup::NAME_PREFIX)?
        .rsplit_once('.')?;
    Some((name, pid.parse().ok()?))
}

/// Returns the groups in which shims started by this process create theirs.
fn parents() -> Result<Vec<PathBuf>, FileError> {
    let hierarchies = match Hierarchies::read() {
        Ok(hierarchies) => hierarchies,
        Err(error) if is_resource_exhaustion(&error.source) => return Err(error),
        Err(_) => return Ok(Vec::new()),
    };
    let mut parents: Vec<_> = Controller::ALL
        .into_iter()
        .filter_map(|controller| hierarchies.of(controller)?.parent().map(Path::to_owned))
        .chain(hierarchies.freezer_parent())
        .collect();
    parents.sort_unstable();
    parents.dedup();
    Ok(parents)
}

/// Returns the paths in the record of the box in `dir`.
fn read_record(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    match BoxDir::new(dir).control_groups() {
        Err(error) if is_resource_exhaustion(&error.source) => Err(error),
        groups => Ok(groups.unwrap_or_default()),
    }
}

/// Returns an error only if resources are exhausted, and `None` for any other error.
fn unless_exhausted<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, FileError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_resource_exhaustion(&error) => Err(FileError::new("read", path, error)),
        Err(_) => Ok(None),
    }
}
