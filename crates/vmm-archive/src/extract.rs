use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use tar::{Archive, EntryType};

use crate::ArchiveError;
use crate::attributes::Attributes;
use crate::destination::Destination;
use crate::member::{Member, MemberReader, read_error};
use crate::new_file::create_file;
use crate::node::Node;
use crate::tree::{Place, remove};

/// Options of [`extract`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExtractOptions {
    /// Whether files that exist are replaced; true by default. Directories are not replaced.
    pub overwrite: bool,
    /// Whether a destination that is not a directory is the new name of the first component of all
    /// paths in the archive, as for `docker cp`. By default, such a destination is created as a
    /// directory.
    pub rename_root: bool,
    /// Whether owners, set-user-ID and set-group-ID bits, and devices are those of the archive, which
    /// needs root. By default, files belong to the caller and have no such bits, and a device is an
    /// error: for archives that are not trusted.
    pub preserve: bool,
}

impl Default for ExtractOptions {
    fn default() -> Self {
        Self {
            overwrite: true,
            rename_root: false,
            preserve: false,
        }
    }
}

impl ExtractOptions {
    /// Sets whether files that exist are replaced.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Sets whether a destination that is not a directory is a new name.
    #[must_use]
    pub fn rename_root(mut self, rename_root: bool) -> Self {
        self.rename_root = rename_root;
        self
    }

    /// Sets whether owners, all mode bits, and devices are those of the archive.
    #[must_use]
    pub fn preserve(mut self, preserve: bool) -> Self {
        self.preserve = preserve;
        self
    }
}

/// Extracts a tar archive at a path, and reads the stream to its end.
///
/// No path leads out of the destination, see the [crate]. A symbolic link may point to anywhere, but
/// nothing is written through one that leads out. Directories that exist keep their owner and mode.
///
/// A file gets its name, and replaces what had it, when its content is complete: no error leaves a part
/// of a file. Blocks of zeros become holes.
///
/// # Errors
///
/// [`ArchiveError`]. The files that were complete before stay.
pub fn extract(
    mut archive: impl Read,
    destination: &Path,
    options: &ExtractOptions,
) -> Result<(), ArchiveError> {
    let mut extractor = Extractor {
        destination: None,
        open_dirs: Vec::new(),
        options,
    };
    let mut members = MemberReader::default();
    let mut tar = Archive::new(&mut archive);
    for entry in tar.entries().map_err(ArchiveError::Read)?.raw(true) {
        let mut entry = entry.map_err(read_error)?;
        if let Some(member) = members.read(&mut entry)? {
            extractor.add(&member, &mut entry, destination)?;
        }
    }
    extractor.complete_dirs()?;
    // The writer of a stream does not expect that its reader leaves before the padding.
    io::copy(&mut archive, &mut io::sink()).map_err(ArchiveError::Read)?;
    Ok(())
}

struct Extractor<'a> {
    destination: Option<Destination>,
    /// New directories, each below the previous one. They get their mode and time when all below
    /// them is extracted.
    open_dirs: Vec<(PathBuf, OwnedFd, Attributes)>,
    options: &'a ExtractOptions,
}

impl Extractor<'_> {
    fn add(
        &mut self,
        member: &Member,
        data: &mut impl Read,
        path: &Path,
    ) -> Result<(), ArchiveError> {
        let destination = match self.destination.take() {
            Some(destination) => destination,
            None => Destination::open(path, self.options.rename_root, member)?,
        };
        let destination = self.destination.insert(destination);
        let target = destination.locate(&member.path)?;
        while let Some((dir, fd, attributes)) =
            self.open_dirs.pop_if(|(dir, ..)| !target.starts_with(dir))
        {
            complete(&dir, &fd, &attributes)?;
        }
        let Some(place) = destination.tree.place(&target)? else {
            return Ok(());
        };
        let attributes = Attributes::new(member, self.options)?;
        let overwrite = self.options.overwrite;
        match member.kind {
            EntryType::Directory => {
                if let Some(dir) = create_dir(destination, &place, &target)? {
                    self.open_dirs.push((target, dir, attributes));
                }
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous => {
                create_file(&place, member, data, &target, &attributes, overwrite)
            }
            _ => {
                // First, so that nothing is replaced by what cannot be created.
                let node = Node::of(member, destination, self.options)?;
                if overwrite {
                    remove(&place).map_err(ArchiveError::of("replace", &target))?;
                }
                let created = node.create(&place, &attributes);
                created.map_err(ArchiveError::of("create", &target))
            }
        }
    }

    fn complete_dirs(&mut self) -> Result<(), ArchiveError> {
        while let Some((dir, fd, attributes)) = self.open_dirs.pop() {
            complete(&dir, &fd, &attributes)?;
        }
        Ok(())
    }
}

fn complete(path: &Path, dir: &OwnedFd, attributes: &Attributes) -> Result<(), ArchiveError> {
    let applied = attributes.apply(dir);
    applied.map_err(ArchiveError::of("change the mode of", path))
}

/// Returns the new directory, or `None` if it exists.
fn create_dir(
    destination: &Destination,
    place: &Place,
    path: &Path,
) -> Result<Option<OwnedFd>, ArchiveError> {
    match mkdirat(&place.parent, &place.name, Mode::RWXU) {
        Ok(()) => {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(&place.parent, &place.name, flags, Mode::empty());
            opened.map(Some).map_err(ArchiveError::of("open", path))
        }
        // Also a symbolic link to a directory below the destination.
        Err(Errno::EXIST) => destination.tree.open_dir(path).map(|_| None),
        Err(error) => Err(ArchiveError::of("create", path)(error)),
    }
}
