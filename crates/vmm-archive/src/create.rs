use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, ReadDir};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, major, minor};
use tar::{Builder, Header};

use crate::ArchiveError;

/// Options of [`create`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Whether the archive has the targets of symbolic links in place of the links.
    pub follow_symlinks: bool,
    /// The user and group that own all files of the archive; those that own the files by default.
    pub owner: Option<(u32, u32)>,
}

impl CreateOptions {
    /// Sets whether symbolic links are followed.
    #[must_use]
    pub fn follow_symlinks(mut self, follow: bool) -> Self {
        self.follow_symlinks = follow;
        self
    }

    /// Sets the user and group that own all files of the archive.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }
}

/// Writes a file, or a directory with all that is below it, to a tar archive.
///
/// The paths in the archive start with the last component of `source`. They are relative to the
/// directory if `source` ends with `/.`, as for `docker cp`. A file that grows or shrinks meanwhile
/// keeps the size that it had, filled with zeros. Hard links become separate files, and sockets are
/// skipped.
///
/// # Errors
///
/// [`ArchiveError::NotFound`] and [`ArchiveError::NotADirectory`] before anything is written; other
/// errors leave an incomplete archive.
pub fn create(
    source: &Path,
    archive: impl Write,
    options: &CreateOptions,
) -> Result<(), ArchiveError> {
    let output = Output {
        archive,
        has_failed: false,
    };
    let mut writer = Writer {
        builder: Builder::new(output),
        options,
    };
    let added = writer.add_tree(source);
    writer.builder.get_mut().has_failed = added.is_err();
    added?;
    let mut output = writer.builder.into_inner().map_err(ArchiveError::Write)?;
    output.flush().map_err(ArchiveError::Write)
}

/// Takes nothing after a failure: a dropped `Builder` writes the end of an archive, which then would
/// look complete.
struct Output<W> {
    archive: W,
    has_failed: bool,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.has_failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.archive.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.archive.flush()
    }
}

/// A directory whose entries are being added.
struct OpenDir {
    path: PathBuf,
    name: PathBuf,
    entries: ReadDir,
}

struct Writer<'a, W: Write> {
    builder: Builder<Output<W>>,
    options: &'a CreateOptions,
}

impl<W: Write> Writer<'_, W> {
    fn add_tree(&mut self, source: &Path) -> Result<(), ArchiveError> {
        let name = name_of(source);
        let metadata = self.metadata(source)?;
        let mut open_dirs = Vec::new();
        open_dirs.extend(self.add(source, &name, &metadata)?);
        while let Some(dir) = open_dirs.last_mut() {
            let Some(entry) = dir.entries.next() else {
                open_dirs.pop();
                continue;
            };
            let entry = entry.map_err(ArchiveError::of("read", &dir.path))?;
            let name = dir.name.join(entry.file_name());
            let path = entry.path();
            let added = self
                .metadata(&path)
                .and_then(|metadata| self.add(&path, &name, &metadata));
            match added {
                Ok(dir) => open_dirs.extend(dir),
                // Another process has removed it, or a link that is followed leads nowhere.
                Err(ArchiveError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn metadata(&self, path: &Path) -> Result<Metadata, ArchiveError> {
        let read = if self.options.follow_symlinks {
            fs::metadata(path)
        } else {
            fs::symlink_metadata(path)
        };
        read.map_err(ArchiveError::of("read", path))
    }

    /// Adds a file under this name. Returns the directory whose entries follow.
    fn add(
        &mut self,
        path: &Path,
        name: &Path,
        metadata: &Metadata,
    ) -> Result<Option<OpenDir>, ArchiveError> {
        let kind = metadata.file_type();
        if kind.is_file() {
            return self.add_file(path, name).map(|()| None);
        }
        let mut header = self.header(metadata);
        if kind.is_char_device() || kind.is_block_device() {
            let device = metadata.rdev();
            header
                .set_device_major(major(device))
                .and_then(|()| header.set_device_minor(minor(device)))
                .map_err(ArchiveError::Write)?;
        }
        if kind.is_dir() {
            let entries = fs::read_dir(path).map_err(ArchiveError::of("read", path))?;
            self.append(&mut header, name, io::empty())?;
            let (path, name) = (path.to_owned(), name.to_owned());
            return Ok(Some(OpenDir {
                path,
                name,
                entries,
            }));
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(ArchiveError::of("read", path))?;
            let appended = self.builder.append_link(&mut header, name, target);
            appended.map_err(ArchiveError::Write)?;
        } else if !kind.is_socket() {
            self.append(&mut header, name, io::empty())?;
        }
        Ok(None)
    }

    fn add_file(&mut self, path: &Path, name: &Path) -> Result<(), ArchiveError> {
        let file = self.open(path)?;
        // The path can lead to another file by now.
        let metadata = file.metadata().map_err(ArchiveError::of("read", path))?;
        if !metadata.is_file() {
            return Err(ArchiveError::NotFound(path.to_owned()));
        }
        let mut header = self.header(&metadata);
        let size = metadata.len();
        let data = file.take(size).chain(io::repeat(0)).take(size);
        self.append(&mut header, name, data)
    }

    fn open(&self, path: &Path) -> Result<File, ArchiveError> {
        let mut flags = OFlags::NONBLOCK;
        flags.set(OFlags::NOFOLLOW, !self.options.follow_symlinks);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        opened.map_err(ArchiveError::of("open", path))
    }

    fn header(&self, metadata: &Metadata) -> Header {
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        if !metadata.is_file() {
            header.set_size(0);
        }
        if let Some((uid, gid)) = self.options.owner {
            header.set_uid(uid.into());
            header.set_gid(gid.into());
        }
        header
    }

    fn append(
        &mut self,
        header: &mut Header,
        name: &Path,
        data: impl Read,
    ) -> Result<(), ArchiveError> {
        self.builder
            .append_data(header, name, data)
            .map_err(ArchiveError::Write)
    }
}

/// Returns the path in the archive of what is at this path.
fn name_of(source: &Path) -> PathBuf {
    let is_contents = source.as_os_str().as_bytes().ends_with(b"/.");
    let name = source.file_name().filter(|_| !is_contents);
    name.unwrap_or(OsStr::new(".")).into()
}
