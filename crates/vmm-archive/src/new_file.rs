use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat_with};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::ArchiveError;
use crate::attributes::Attributes;
use crate::member::{Member, read_error};
use crate::tree::{Place, remove};

/// How many bytes of a file are copied at once.
const COPY_BYTES: usize = 64 << 10;

/// Creates a file with this content, which gets its name when it is complete.
pub(crate) fn create_file(
    place: &Place,
    member: &Member,
    data: &mut impl Read,
    path: &Path,
    attributes: &Attributes,
    overwrite: bool,
) -> Result<(), ArchiveError> {
    let new = match NewFile::unnamed(place) {
        // Such as overlayfs before Linux 6.10, and NFS.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => NewFile::temporary(place),
        new => new,
    };
    let mut new = new.map_err(ArchiveError::of("create", path))?;
    if copy(data, &mut new.file, path)? < member.size {
        return Err(ArchiveError::Invalid("it ends early".to_owned()));
    }
    attributes
        .apply(&new.file)
        .map_err(ArchiveError::of("change the mode of", path))?;
    new.complete(overwrite)
        .map_err(ArchiveError::of("create", path))
}

/// A file whose content is being written.
#[derive(Debug)]
struct NewFile<'a> {
    file: File,
    place: &'a Place,
    /// Removed when this is dropped; `None` for a file without a name, which the kernel removes when this
    /// process ends: `O_TMPFILE` in open(2).
    temporary: Option<Place>,
}

impl<'a> NewFile<'a> {
    fn unnamed(place: &'a Place) -> Result<Self, Errno> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&place.parent, ".", flags, MODE)?.into();
        Ok(Self {
            file,
            place,
            temporary: None,
        })
    }

    /// For a file system without unnamed files.
    fn temporary(place: &'a Place) -> Result<Self, Errno> {
        let parent = fcntl_dupfd_cloexec(&place.parent, 0)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut number = 0;
        loop {
            let name = format!(".vmm-archive-{}-{number}", std::process::id());
            match openat(&parent, &name, flags, MODE) {
                Err(Errno::EXIST) => number += 1,
                opened => {
                    let file = opened?.into();
                    let name = name.into();
                    let temporary = Some(Place { parent, name });
                    return Ok(Self {
                        file,
                        place,
                        temporary,
                    });
                }
            }
        }
    }

    fn complete(mut self, overwrite: bool) -> Result<(), Errno> {
        let Some(temporary) = &self.temporary else {
            return link(&self.file, self.place, overwrite);
        };
        let flags = if overwrite {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        let Place { parent, name } = self.place;
        renameat_with(&temporary.parent, &temporary.name, parent, name, flags)?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error that ends the extraction is reported.
            let _ = remove(temporary);
        }
    }
}

/// Names an unnamed file, as open(2) describes it.
fn link(file: &File, place: &Place, overwrite: bool) -> Result<(), Errno> {
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Place { parent, name } = place;
    loop {
        match linkat(CWD, &unnamed, parent, name, AtFlags::SYMLINK_FOLLOW) {
            Err(Errno::EXIST) if overwrite => remove(place)?,
            linked => return linked,
        }
    }
}

/// The mode of a file that is not complete.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Returns the size of the file.
fn copy(data: &mut impl Read, file: &mut File, path: &Path) -> Result<u64, ArchiveError> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut size = 0;
    loop {
        let length = match data.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read_error(error)),
        };
        size += length as u64;
        let data = &buffer[..length];
        let written = if data.iter().all(|byte| *byte == 0) {
            // A hole: a sparse file can be larger than the disk.
            file.seek(SeekFrom::Start(size)).map(drop)
        } else {
            file.write_all(data)
        };
        written.map_err(ArchiveError::of("write", path))?;
    }
    file.set_len(size)
        .map_err(ArchiveError::of("write", path))?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_temporary_name_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        let place = Place {
            parent: File::open(dir.path()).unwrap().into(),
            name: "file".into(),
        };
        let new = || {
            let mut new = NewFile::temporary(&place).unwrap();
            new.file.write_all(b"new").unwrap();
            new
        };
        let count = || fs::read_dir(dir.path()).unwrap().count();

        let (first, second) = (new(), new());
        assert_eq!(count(), 3);
        drop(first);
        assert_eq!(second.complete(false), Err(Errno::EXIST));
        assert_eq!((fs::read(&path).unwrap(), count()), (b"old".to_vec(), 1));

        new().complete(true).unwrap();
        assert_eq!((fs::read(&path).unwrap(), count()), (b"new".to_vec(), 1));
    }
}
