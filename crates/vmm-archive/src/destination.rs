use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::ArchiveError;
use crate::member::Member;
use crate::tree::Tree;

/// Where the entries of an archive are extracted.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) tree: Tree,
    root: Root,
}

/// What becomes of the first component of the paths in an archive.
#[derive(Debug)]
enum Root {
    /// It stays.
    Kept,
    /// It is this, and is replaced by the destination, which is a directory.
    Replaced(OsString),
    /// The archive has one entry. This is its new name.
    Single(OsString),
}

impl Destination {
    /// Decides by the first member of the archive, and creates the directory if it is missing.
    pub(crate) fn open(
        path: &Path,
        renames_root: bool,
        first: &Member,
    ) -> Result<Self, ArchiveError> {
        let exists = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Self::below(path, Root::Kept),
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(ArchiveError::of("open", path)(error)),
        };
        let not_a_directory = || ArchiveError::NotADirectory(path.to_owned());
        let root = first.path.components().next();
        let is_single = !first.kind.is_dir() && first.path.components().count() == 1;
        match root {
            Some(_) if renames_root && is_single => {
                let has_slash = path.as_os_str().as_bytes().ends_with(b"/");
                let name = path.file_name().filter(|_| !has_slash);
                let name = name.ok_or_else(not_a_directory)?;
                let parent = path
                    .parent()
                    .filter(|parent| !parent.as_os_str().is_empty());
                Self::below(
                    parent.unwrap_or(Path::new(".")),
                    Root::Single(name.to_owned()),
                )
            }
            _ if exists => Err(not_a_directory()),
            Some(root) if renames_root => {
                fs::create_dir(path).map_err(ArchiveError::of("create", path))?;
                Self::below(path, Root::Replaced(root.as_os_str().to_owned()))
            }
            _ => {
                fs::create_dir_all(path).map_err(ArchiveError::of("create", path))?;
                Self::below(path, Root::Kept)
            }
        }
    }

    fn below(path: &Path, root: Root) -> Result<Self, ArchiveError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened: OwnedFd =
            openat(CWD, path, flags, Mode::empty()).map_err(ArchiveError::of("open", path))?;
        Ok(Self {
            tree: Tree::new(opened),
            root,
        })
    }

    /// Returns where an entry is extracted, relative to the tree.
    pub(crate) fn locate(&self, entry: &Path) -> Result<PathBuf, ArchiveError> {
        let stripped = match &self.root {
            Root::Kept => return Ok(entry.to_owned()),
            Root::Replaced(root) => entry.strip_prefix(root).ok(),
            Root::Single(name) => {
                let is_root = entry.components().count() == 1;
                is_root.then(|| Path::new(name))
            }
        };
        stripped.map(Path::to_owned).ok_or_else(|| {
            let entry = entry.display();
            let message = format!("{entry} is not below the first entry, which is renamed");
            ArchiveError::Invalid(message)
        })
    }
}
