use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use tar::{Entry, EntryType, Header, PaxExtensions};

use crate::ArchiveError;

/// The longest extension that precedes an entry, in bytes: a path, or fields of the pax format.
const MAX_EXTENSION: u64 = 64 << 10;

/// What an archive says about a file.
#[derive(Debug)]
pub(crate) struct Member {
    /// Relative, and without `.` and `..`.
    pub(crate) path: PathBuf,
    pub(crate) kind: EntryType,
    /// The target of a symbolic link, or the path of a hard link in the archive.
    pub(crate) link: PathBuf,
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    /// The number of bytes of content.
    pub(crate) size: u64,
    /// In seconds since the Unix epoch.
    pub(crate) modified: u64,
    /// The major and minor number.
    pub(crate) device: (u32, u32),
}

/// Reads the members of an archive. Holds what precedes the next one.
///
/// The crate `tar` reads these extensions itself, but into memory without a bound.
#[derive(Debug, Default)]
pub(crate) struct MemberReader {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    modified: Option<u64>,
    size: Option<u64>,
}

impl MemberReader {
    /// Reads a raw entry. Returns `None` if it describes the next one.
    pub(crate) fn read<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
    ) -> Result<Option<Member>, ArchiveError> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(read_text(entry)?),
            EntryType::GNULongLink => self.link = Some(read_text(entry)?),
            EntryType::XHeader => self.add_pax(&read_extension(entry)?)?,
            EntryType::XGlobalHeader => {}
            _ => return std::mem::take(self).member(entry.header()).map(Some),
        }
        Ok(None)
    }

    fn add_pax(&mut self, fields: &[u8]) -> Result<(), ArchiveError> {
        for field in PaxExtensions::new(fields) {
            let field = field.map_err(read_error)?;
            let value = field.value_bytes();
            match field.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = Some(number(value)?),
                b"gid" => self.gid = Some(number(value)?),
                b"size" => self.size = Some(number(value)?),
                // A fraction, and a minus sign, are possible.
                b"mtime" => {
                    self.modified = number(value.split(|b| *b == b'.').next().unwrap_or(&[])).ok()
                }
                // The content has a map of the holes, and is not that of the file.
                key if key.starts_with(b"GNU.sparse.") => {
                    let message = "it has a sparse file; create it without --sparse";
                    return Err(ArchiveError::Invalid(message.to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn member(self, header: &Header) -> Result<Member, ArchiveError> {
        let path = self
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = match self.link {
            Some(link) => link,
            None => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        let kind = match header.entry_type() {
            // As the oldest versions of tar write directories.
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        let path = relative(Path::new(OsStr::from_bytes(&path)))?;
        let size = header.entry_size().map_err(read_error)?;
        if self.size.is_some_and(|of_pax| of_pax != size) {
            let path = path.display();
            let message = format!("{path} is longer than 8 GiB; use the GNU format of tar");
            return Err(ArchiveError::Invalid(message));
        }
        let field = |of_pax: Option<u64>, value: io::Result<u64>| match of_pax {
            Some(value) => Ok(value),
            None => value.map_err(read_error),
        };
        let device = |value: io::Result<Option<u32>>| value.ok().flatten().unwrap_or(0);
        Ok(Member {
            path,
            kind,
            link: OsStr::from_bytes(&link).into(),
            mode: header.mode().map_err(read_error)?,
            owner: (
                field(self.uid, header.uid())?,
                field(self.gid, header.gid())?,
            ),
            size,
            modified: field(self.modified, header.mtime())?,
            device: (device(header.device_major()), device(header.device_minor())),
        })
    }
}

/// Returns the path of an entry, relative to the root of its archive.
pub(crate) fn relative(path: &Path) -> Result<PathBuf, ArchiveError> {
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::ParentDir => return Err(ArchiveError::Escapes(path.to_owned())),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(relative)
}

fn read_extension<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    let read = entry.take(MAX_EXTENSION + 1).read_to_end(&mut bytes);
    if read.map_err(read_error)? as u64 > MAX_EXTENSION {
        let message = format!("an entry has a description of more than {MAX_EXTENSION} bytes");
        return Err(ArchiveError::Invalid(message));
    }
    Ok(bytes)
}

/// Reads text that ends with a NUL character.
fn read_text<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, ArchiveError> {
    let mut text = read_extension(entry)?;
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end);
    }
    Ok(text)
}

fn number(digits: &[u8]) -> Result<u64, ArchiveError> {
    let parsed = std::str::from_utf8(digits)
        .ok()
        .and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| ArchiveError::Invalid("a field is not a number".to_owned()))
}

/// Converts an error of the crate `tar`, which has one type for both.
pub(crate) fn read_error(error: io::Error) -> ArchiveError {
    if error.raw_os_error().is_some() {
        ArchiveError::Read(error)
    } else {
        ArchiveError::Invalid(error.to_string())
    }
}
