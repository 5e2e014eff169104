use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat};
use rustix::io::Errno;

use crate::ArchiveError;

/// A directory that no path below it leads out of.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
}

/// The place of a file: its directory, and its name there.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) parent: OwnedFd,
    pub(crate) name: OsString,
}

/// Removes the file at a place, if there is one. A directory is an error.
pub(crate) fn remove(place: &Place) -> Result<(), Errno> {
    match unlinkat(&place.parent, &place.name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

impl Tree {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// Opens a directory below the root, or the root.
    pub(crate) fn open_dir(&self, path: &Path) -> Result<OwnedFd, ArchiveError> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                // Another process has moved a directory meanwhile, openat2(2).
                Err(Errno::AGAIN) => {}
                Err(Errno::XDEV | Errno::LOOP) => {
                    return Err(ArchiveError::Escapes(path.to_owned()));
                }
                opened => return opened.map_err(ArchiveError::of("open", path)),
            }
        }
    }

    /// Returns the place of a file below the root, whose directories are created if they are
    /// missing. Returns `None` for the root.
    pub(crate) fn place(&self, path: &Path) -> Result<Option<Place>, ArchiveError> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(None);
        };
        let parent = match self.open_dir(parent) {
            Err(ArchiveError::NotFound(_)) => self.create_dirs(parent)?,
            opened => opened?,
        };
        let name = name.to_owned();
        Ok(Some(Place { parent, name }))
    }

    fn create_dirs(&self, path: &Path) -> Result<OwnedFd, ArchiveError> {
        let mut parent = self.open_dir(Path::new(""))?;
        let mut created = PathBuf::new();
        for name in path.components() {
            created.push(name);
            match mkdirat(parent.as_fd(), name.as_os_str(), DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(ArchiveError::of("create", &created)(error)),
            }
            parent = self.open_dir(&created)?;
        }
        Ok(parent)
    }
}

/// The mode of a directory that the archive does not describe.
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);
