//! Removal of a directory tree whose contents are untrusted.

use std::ffi::{CStr, OsStr};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, StatxAttributes, StatxFlags, chmod, fstat, openat, renameat,
    statx, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::FileError;

/// The progress of [`remove_tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalProgress {
    /// Nothing is left.
    Removed,
    /// `stop` returned true. The next call continues.
    Stopped,
}

/// How often a directory is read again after new entries appeared during its removal.
const MAX_ATTEMPTS: u32 = 3;

/// Removes a file, or a directory with all its contents, until `stop` returns true.
///
/// Uses constant stack and memory and at most four descriptors for any tree: instead of descending,
/// it moves each non-empty directory up into the root of the tree and removes it there. No path in
/// it is longer than two names.
///
/// Does not follow symbolic links and does not enter mount points. Adds the owner's permissions to
/// directories that lack them, if they belong to this user.
///
/// # Errors
///
/// Returns a [`FileError`] that names the first entry that cannot be removed. The other entries are
/// removed.
pub fn remove_tree(path: &Path, stop: impl Fn() -> bool) -> Result<RemovalProgress, FileError> {
    let to_error = |errno: Errno| FileError::new("remove", path, errno.into());
    let Entry::Filled = unlink(CWD, path).map_err(to_error)? else {
        return Ok(RemovalProgress::Removed);
    };
    let root = open_dir(CWD, path).and_then(Dir::new).map_err(to_error)?;
    let mut tree = Tree {
        path,
        root,
        stop,
        prefix: RandomState::new().hash_one(path),
        next: 0,
        removed: 0,
        failure: None,
    };
    for _ in 0..MAX_ATTEMPTS {
        tree.failure = None;
        tree.empty().map_err(to_error)?;
        if (tree.stop)() {
            return Ok(RemovalProgress::Stopped);
        }
        if let Some(failure) = tree.failure.take() {
            return Err(failure);
        }
        if let Entry::Gone = unlink(CWD, path).map_err(to_error)? {
            return Ok(RemovalProgress::Removed);
        }
    }
    Err(to_error(Errno::NOTEMPTY))
}

#[cfg(test)]
std::thread_local! {
    /// The number of system calls with which this thread has tried to move a directory up.
    static RENAMES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

struct Tree<'a, S> {
    path: &'a Path,
    root: Dir,
    stop: S,
    /// The prefix of the names of directories that are moved up. It differs per call: otherwise the
    /// names would collide with those that stopped calls have moved up and not removed.
    prefix: u64,
    /// The number in the name of the next directory that is moved up.
    next: u64,
    /// All numbers below this one have been removed.
    removed: u64,
    failure: Option<FileError>,
}

impl<S: Fn() -> bool> Tree<'_, S> {
    /// Removes the entries of the root.
    fn empty(&mut self) -> Result<(), Errno> {
        self.root.rewind();
        while let Some(entry) = self.root.read() {
            let entry = entry?;
            if (self.stop)() {
                return Ok(());
            }
            if !is_self_or_parent(entry.file_name()) {
                self.remove(entry.file_name());
                self.remove_moved()?;
            }
        }
        Ok(())
    }

    /// Removes the directories that were moved up, before others are. A listing may not include
    /// them: whether it includes entries added during it depends on the file system.
    fn remove_moved(&mut self) -> Result<(), Errno> {
        while self.removed < self.next && !(self.stop)() {
            let name = self.moved_name(self.removed).into_c_str()?.into_owned();
            self.remove(&name);
            self.removed += 1;
        }
        Ok(())
    }

    /// Removes an entry of the root.
    fn remove(&mut self, name: &CStr) {
        let removed = match self.root.fd().and_then(|root| unlink(root, name)) {
            Ok(Entry::Gone) => Ok(()),
            Ok(Entry::Filled) => self.remove_dir(name),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = removed {
            self.record_failure(&[name], errno);
        }
    }

    /// Removes a directory of the root.
    fn remove_dir(&mut self, name: &CStr) -> Result<(), Errno> {
        for _ in 0..MAX_ATTEMPTS {
            let mut dir = match open_dir(self.root.fd()?, name) {
                Err(Errno::NOENT) => return Ok(()),
                opened => Dir::new(opened?)?,
            };
            let mut is_emptied = true;
            while let Some(entry) = dir.read() {
                let entry = entry?;
                if (self.stop)() {
                    return Ok(());
                }
                let inner = entry.file_name();
                if is_self_or_parent(inner) {
                    continue;
                }
                let removed = match unlink(dir.fd()?, inner) {
                    Ok(Entry::Gone) => Ok(()),
                    Ok(Entry::Filled) => self.move_up(dir.fd()?, inner),
                    Err(errno) => Err(errno),
                };
                if let Err(errno) = removed {
                    is_emptied = false;
                    self.record_failure(&[name, inner], errno);
                }
            }
            if !is_emptied {
                // The recorded failure is the cause.
                return Ok(());
            }
            if let Entry::Gone = unlink(self.root.fd()?, name)? {
                return Ok(());
            }
        }
        Err(Errno::NOTEMPTY)
    }

    /// Moves a directory into the root, from a directory of the root.
    fn move_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let mut is_accessible = false;
        while !(self.stop)() {
            let fresh = self.moved_name(self.next);
            #[cfg(test)]
            RENAMES.set(RENAMES.get() + 1);
            match renameat(from, name, self.root.fd()?, fresh) {
                Ok(()) => {
                    self.next += 1;
                    return Ok(());
                }
                Err(Errno::NOENT) => return Ok(()),
                // The payload uses this name.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => self.next += 1,
                // Moving a directory changes its entry `..`, which requires write permission on it.
                Err(Errno::ACCESS) if !is_accessible => {
                    open_dir(from, name)?;
                    is_accessible = true;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn moved_name(&self, number: u64) -> String {
        format!("{:016x}.{number}", self.prefix)
    }

    fn record_failure(&mut self, names: &[&CStr], errno: Errno) {
        self.failure.get_or_insert_with(|| {
            let mut path = self.path.to_owned();
            path.extend(names.iter().map(|name| OsStr::from_bytes(name.to_bytes())));
            FileError::new("remove", path, errno.into())
        });
    }
}

enum Entry {
    Gone,
    /// A directory that is not empty and is not a mount point.
    Filled,
}

/// Removes an entry if one system call can.
fn unlink(dir: BorrowedFd<'_>, name: impl Arg + Copy) -> Result<Entry, Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(Entry::Gone),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    // A mount point fails with EBUSY.
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(Entry::Gone),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(Entry::Filled),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory for reading and gives its owner all permissions. Fails for a mount point, also
/// for one mounted since [`unlink`].
fn open_dir(dir: BorrowedFd<'_>, name: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // O_PATH needs no permission on the directory itself.
    let found = openat(dir, name, flags | OFlags::PATH, Mode::empty())?;
    if is_mount_point(dir, &found)? {
        return Err(Errno::BUSY);
    }
    let mode = Mode::from_raw_mode(fstat(&found)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // fchmod(2) fails on an O_PATH descriptor. If chmod fails, the operations that need the
        // permission fail, too.
        let _ = chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), Mode::RWXU);
    }
    openat(&found, c".", flags, Mode::empty())
}

fn is_mount_point(parent: BorrowedFd<'_>, dir: &OwnedFd) -> Result<bool, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    if let Ok(found) = statx(dir, c"", flags, StatxFlags::empty())
        && found
            .stx_attributes_mask
            .contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Before Linux 5.8. `unlink` alone checks the root of the tree.
    let is_root = parent.as_raw_fd() == CWD.as_raw_fd();
    Ok(!is_root && fstat(parent)?.st_dev != fstat(dir)?.st_dev)
}

fn is_self_or_parent(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests;
