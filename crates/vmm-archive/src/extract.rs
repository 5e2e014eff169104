use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tar::{Archive, EntryType};

use crate::ArchiveError;
use crate::attributes::Attributes;
use crate::destination::Destination;
use crate::member::{Member, MemberReader, read_error, relative};
use crate::tree::Place;

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
/// # Errors
///
/// [`ArchiveError`]. What was extracted before stays.
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
        if member.kind.is_dir() {
            if let Some(dir) = create_dir(destination, &place, &target)? {
                self.open_dirs.push((target, dir, attributes));
            }
            return Ok(());
        }
        if self.options.overwrite {
            match unlinkat(&place.parent, place.name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(ArchiveError::of("replace", &target)(error)),
            }
        }
        match member.kind {
            EntryType::Regular | EntryType::Continuous => {
                return create_file(&place, data, &target, &attributes);
            }
            EntryType::Link => return create_link(destination, member, &place, &target),
            _ => {}
        }
        self.create_node(member, &place, &attributes)?
            .and_then(|()| attributes.apply_at(&place))
            .map_err(ArchiveError::of("create", &target))
    }

    /// Creates what has no content.
    fn create_node(
        &self,
        member: &Member,
        place: &Place<'_>,
        attributes: &Attributes,
    ) -> Result<Result<(), Errno>, ArchiveError> {
        let (parent, name) = (&place.parent, place.name);
        let (major, minor) = member.device;
        let make = |kind, device| mknodat(parent, name, kind, attributes.mode(), device);
        Ok(match member.kind {
            EntryType::Symlink => symlinkat(&member.link, parent, name),
            EntryType::Fifo => make(FileType::Fifo, 0),
            EntryType::Char if self.options.preserve => {
                make(FileType::CharacterDevice, makedev(major, minor))
            }
            EntryType::Block if self.options.preserve => {
                make(FileType::BlockDevice, makedev(major, minor))
            }
            kind => {
                let path = member.path.display();
                let message = format!("{path} has the type {kind:?}, which is not extracted");
                return Err(ArchiveError::Invalid(message));
            }
        })
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
    place: &Place<'_>,
    path: &Path,
) -> Result<Option<OwnedFd>, ArchiveError> {
    match mkdirat(&place.parent, place.name, Mode::RWXU) {
        Ok(()) => {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(&place.parent, place.name, flags, Mode::empty());
            opened.map(Some).map_err(ArchiveError::of("open", path))
        }
        // Also a symbolic link to a directory below the destination.
        Err(Errno::EXIST) => destination.tree.open_dir(path).map(|_| None),
        Err(error) => Err(ArchiveError::of("create", path)(error)),
    }
}

fn create_file(
    place: &Place<'_>,
    data: &mut impl Read,
    path: &Path,
    attributes: &Attributes,
) -> Result<(), ArchiveError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(&place.parent, place.name, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(opened.map_err(ArchiveError::of("create", path))?);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match data.read(&mut buffer) {
            // An archive that ends early is an error when the next entry is read.
            Ok(0) => break,
            Ok(length) => file
                .write_all(&buffer[..length])
                .map_err(ArchiveError::of("write", path))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_error(error)),
        }
    }
    attributes
        .apply(&file)
        .map_err(ArchiveError::of("change the mode of", path))
}

/// How many bytes of a file are copied at once.
const COPY_BYTES: usize = 64 << 10;

/// Creates a hard link to a file that was extracted earlier.
fn create_link(
    destination: &Destination,
    member: &Member,
    place: &Place<'_>,
    path: &Path,
) -> Result<(), ArchiveError> {
    let source = destination.locate(&relative(&member.link)?)?;
    let from = destination.tree.place(&source)?;
    let from = from.ok_or_else(|| ArchiveError::Escapes(source.clone()))?;
    let (parent, flags) = (&place.parent, AtFlags::empty());
    linkat(&from.parent, from.name, parent, place.name, flags)
        .map_err(ArchiveError::of("create", path))
}
