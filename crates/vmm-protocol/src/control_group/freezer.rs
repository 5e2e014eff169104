use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use super::cgroupfs::{PROCS_FILE, write_setting};
use super::group::{ControlGroup, group_name};
use super::hierarchy::Hierarchies;
use crate::pidfd::{self, has_exited};
use crate::procfs::MAX_TREE_PROCESSES;
use crate::{BoxDir, FileError, procfs};

/// How long all processes may take to freeze. One in an uninterruptible sleep freezes after it.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Version 2 of the freezer, Linux 5.2. Version 1 is not used: SIGKILL does not end a process that
/// it has frozen.
const FREEZE_FILE: &str = "cgroup.freeze";

/// How a shim freezes its payload.
impl ControlGroup {
    /// Freezes all descendants of the calling process, a shim with the box directory `dir`: moves them
    /// into a group of version 2, unless the payload has one. Does nothing if they are frozen.
    ///
    /// SIGKILL ends a frozen process. All other signals wait until it is thawed.
    ///
    /// # Errors
    ///
    /// [`FileError`] if the kernel or the host has no such group, if a process does not freeze within
    /// 2 seconds (the source has the kind [`TimedOut`](io::ErrorKind::TimedOut)), or if there are
    /// 10,000 processes or more ([`QuotaExceeded`](io::ErrorKind::QuotaExceeded)). The processes are
    /// then not frozen.
    pub fn freeze_payload(dir: &Path) -> Result<(), FileError> {
        let own = Self::of_this_process().unwrap_or_default();
        let existing = own.freezer_dirs().next().map(Path::to_owned);
        let group = existing.map_or_else(|| Self::create_freezer(dir, own), Ok)?;
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        let frozen = freeze(&group, deadline, || move_descendants(&group, deadline));
        if frozen.is_err() {
            thaw(&group);
        }
        frozen
    }

    /// Freezes the processes of the groups, of version 2, and waits until all of them are frozen, at most for the time
    /// `limit`.
    ///
    /// # Errors
    ///
    /// [`FileError`] if a group does not exist, or if a process does not freeze in time (the source has the kind
    /// [`TimedOut`](io::ErrorKind::TimedOut)). The processes are then not frozen.
    pub fn freeze(&self, limit: Duration) -> Result<(), FileError> {
        let deadline = Instant::now() + limit;
        let mut dirs = self.dirs.iter();
        let frozen = dirs.try_for_each(|dir| freeze(dir, deadline, || Ok(true)));
        if frozen.is_err() {
            self.thaw();
        }
        frozen
    }

    /// Lets the processes of the groups continue. Does nothing if they are not frozen.
    pub fn thaw(&self) {
        self.freezer_dirs().for_each(thaw);
    }

    /// Returns whether the processes of a group are frozen, or are about to be.
    pub fn is_frozen(&self) -> bool {
        self.freezer_dirs().any(|dir| {
            fs::read_to_string(dir.join(FREEZE_FILE)).is_ok_and(|text| text.trim() == "1")
        })
    }

    fn freezer_dirs(&self) -> impl Iterator<Item = &Path> {
        let dirs = self.dirs.iter().map(PathBuf::as_path);
        dirs.filter(|dir| dir.join(FREEZE_FILE).exists())
    }

    /// Creates a group for the freezer, beside those that limit the payload.
    fn create_freezer(dir: &Path, mut own: Self) -> Result<PathBuf, FileError> {
        let parent = Hierarchies::read()?.freezer_parent().ok_or_else(|| {
            let message = "no hierarchy of version 2 is mounted, or it is not delegated";
            let source = io::Error::new(io::ErrorKind::Unsupported, message);
            FileError::new("find a place to freeze in", "/proc/self/cgroup", source)
        })?;
        let group = parent.join(group_name(dir, process::id()));
        own.dirs.push(group.clone());
        BoxDir::new(dir).write_control_groups(&own.dirs)?;
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FileError::new("create", &group, error));
            }
            _ => own.set_of_this_process(),
        }
        if group.join(FREEZE_FILE).exists() {
            Ok(group)
        } else {
            let error = io::ErrorKind::Unsupported.into();
            Err(FileError::new("freeze", group, error))
        }
    }
}

/// Freezes the group. Waits until `is_complete` returns true and all processes are frozen.
fn freeze(
    group: &Path,
    deadline: Instant,
    mut is_complete: impl FnMut() -> Result<bool, FileError>,
) -> Result<(), FileError> {
    let freeze_error = |error| FileError::new("freeze", group, error);
    // First: what is moved freezes at once, and starts no further processes.
    write_setting(&group.join(FREEZE_FILE), "1").map_err(freeze_error)?;
    while !is_complete()? || !is_frozen(group).map_err(freeze_error)? {
        if Instant::now() >= deadline {
            return Err(freeze_error(io::ErrorKind::TimedOut.into()));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

fn thaw(group: &Path) {
    // Fails only if the group is gone.
    let _ = write_setting(&group.join(FREEZE_FILE), "0");
}

/// Returns whether all processes of the group are frozen.
fn is_frozen(group: &Path) -> io::Result<bool> {
    let events = fs::read_to_string(group.join("cgroup.events"))?;
    Ok(events.lines().any(|line| line == "frozen 1"))
}

/// Moves the descendants of this process into the group, or a group within it. Returns whether all
/// were there before. Fails after the deadline, because the time grows with the square of their number.
fn move_descendants(group: &Path, deadline: Instant) -> Result<bool, FileError> {
    let dirs = vec![group.to_owned()];
    let members = ControlGroup { dirs }.pids()?;
    let move_error = |error| FileError::new("move processes into", group, error);
    let mut is_complete = true;
    for pid in descendants().map_err(move_error)? {
        if members.binary_search(&pid).is_err() && !procfs::is_zombie(pid) {
            is_complete = false;
            if Instant::now() >= deadline {
                return Err(move_error(io::ErrorKind::TimedOut.into()));
            }
            move_descendant(pid, group).map_err(move_error)?;
        }
    }
    Ok(is_complete)
}

fn descendants() -> io::Result<Vec<u32>> {
    let mut tree = complete_tree(procfs::process_tree(process::id())?)?;
    tree.retain(|pid| *pid != process::id());
    Ok(tree)
}

/// Returns an error if processes can be missing in the tree: those would not be frozen.
fn complete_tree(tree: Vec<u32>) -> io::Result<Vec<u32>> {
    if tree.len() < MAX_TREE_PROCESSES {
        return Ok(tree);
    }
    let message = format!("{MAX_TREE_PROCESSES} processes or more; limit the `pids` of the box");
    Err(io::Error::new(io::ErrorKind::QuotaExceeded, message))
}

/// Moves a process, if it has not ended.
fn move_descendant(pid: u32, group: &Path) -> io::Result<()> {
    let Ok(Some(pidfd)) = pidfd::open(pid) else {
        return Ok(());
    };
    // The pidfd is of a descendant, even if the pid was reused since the list was read.
    if !descendants()?.contains(&pid) {
        return Ok(());
    }
    let moved = write_setting(&group.join(PROCS_FILE), &pid.to_string());
    if has_exited(&pidfd) {
        // Its pid may belong to another process since, which is moved back.
        if let (Some(parent), false) = (group.parent(), descendants()?.contains(&pid)) {
            let _ = write_setting(&parent.join(PROCS_FILE), &pid.to_string());
        }
        return Ok(());
    }
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_may_be_incomplete_are_not_frozen() {
        assert!(complete_tree(vec![1; MAX_TREE_PROCESSES - 1]).is_ok());
        let error = complete_tree(vec![1; MAX_TREE_PROCESSES]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    }
}
