//! The files of a guest. The shim opens them, so QEMU needs no permission for their directories, and for
//! those of disks no permission at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use vmm_protocol::{FileError, read_file, write_file};

use super::options::{Disk, DiskAccess, QemuOptions};
use super::qcow2;
use crate::EngineError;

/// The directory of the overlays in a box directory.
pub(super) const OVERLAYS: &str = "overlays";

/// The role of the kernel in an error.
pub(super) const KERNEL: &str = "kernel";

/// The largest record of a base.
const MAX_RECORD_BYTES: u64 = 4096;

/// The bit of a mode that permits every user to read.
const READ_BY_OTHERS: u32 = 0o004;

/// The open files of a guest, as descriptors in QEMU.
#[derive(Debug)]
pub(super) struct GuestFiles {
    pub(super) kernel: i32,
    pub(super) initrd: Option<i32>,
    pub(super) disks: Vec<DiskFiles>,
    /// The descriptors, with their numbers in QEMU.
    pub(super) fds: Vec<(i32, OwnedFd)>,
}

/// The descriptors of a disk in QEMU.
#[derive(Debug)]
pub(super) struct DiskFiles {
    pub(super) image: i32,
    pub(super) is_block_device: bool,
    /// The file with what the guest writes, if it is not the image.
    pub(super) overlay: Option<i32>,
    pub(super) access: DiskAccess,
}

/// Opens files for QEMU, and numbers them.
struct Opener {
    next: i32,
    fds: Vec<(i32, OwnedFd)>,
}

/// Opens the files of a guest for the box in `dir`. Their numbers begin with `first_fd`. `uid` is the
/// user of QEMU, if it is not that of this process.
///
/// # Errors
///
/// [`EngineError::GuestFile`] for the first file that cannot be opened; [`EngineError::BaseChanged`] and
/// [`EngineError::DiskInUse`] for an overlay that cannot be used.
pub(super) fn open(
    options: &QemuOptions,
    dir: &Path,
    first_fd: i32,
    uid: Option<u32>,
) -> Result<GuestFiles, EngineError> {
    let mut opener = Opener {
        next: first_fd,
        fds: Vec::new(),
    };
    let kernel = opener.add(open_for_user(KERNEL, &options.kernel, uid)?);
    let initrd = options.initrd.as_ref();
    let initrd = initrd.map(|path| open_for_user("initrd", path, uid));
    let initrd = initrd.transpose()?.map(|file| opener.add(file));
    let disks = options.disks.iter().enumerate();
    let disks = disks.map(|(number, disk)| opener.open_disk(number, disk, dir));
    Ok(GuestFiles {
        kernel,
        initrd,
        disks: disks.collect::<Result<_, _>>()?,
        fds: opener.fds,
    })
}

impl Opener {
    fn add(&mut self, file: File) -> i32 {
        let number = self.next;
        self.next += 1;
        self.fds.push((number, file.into()));
        number
    }

    fn open_disk(
        &mut self,
        number: usize,
        disk: &Disk,
        dir: &Path,
    ) -> Result<DiskFiles, EngineError> {
        let Disk { path, access } = disk;
        let image = open_file(path, *access == DiskAccess::ReadWrite);
        let mut image = image.map_err(guest_file("disk", path))?;
        let base = Base::of(&mut image).map_err(guest_file("disk", path))?;
        let overlay = match access {
            DiskAccess::ReadOnly | DiskAccess::ReadWrite => None,
            DiskAccess::Overlay => Some(base.temporary_overlay(path, dir)?),
            DiskAccess::Persistent => Some(base.persistent_overlay(path, number, dir)?),
        };
        Ok(DiskFiles {
            image: self.add(image),
            is_block_device: base.is_block_device,
            overlay: overlay.map(|overlay| self.add(overlay)),
            access: *access,
        })
    }
}

/// What identifies the contents of an image: a rebuilt image is another file, a changed one has another
/// time.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    inode: u64,
    bytes: u64,
    /// When the file was changed, in nanoseconds since 1970; 0 for a block device.
    modified_ns: i64,
    #[serde(default)]
    is_block_device: bool,
}

impl Base {
    fn of(image: &mut File) -> io::Result<Self> {
        let metadata = image.metadata()?;
        let is_block_device = metadata.file_type().is_block_device();
        let modified = metadata.mtime().saturating_mul(1_000_000_000);
        Ok(Self {
            inode: metadata.ino(),
            bytes: image.seek(SeekFrom::End(0))?,
            modified_ns: if is_block_device {
                0
            } else {
                modified.saturating_add(metadata.mtime_nsec())
            },
            is_block_device,
        })
    }

    /// Returns an empty overlay.
    fn empty_overlay(&self, path: &Path) -> Result<Vec<u8>, EngineError> {
        let too_large = || guest_file("disk", path)(ErrorKind::FileTooLarge.into());
        qcow2::empty(self.bytes).ok_or_else(too_large)
    }

    /// Creates an overlay without a name in the box directory, which is deleted with its last descriptor.
    fn temporary_overlay(&self, path: &Path, dir: &Path) -> Result<File, EngineError> {
        let contents = self.empty_overlay(path)?;
        let overlays = create_overlay_dir(dir)?;
        let create = || {
            let mut file = tempfile::tempfile_in(&overlays)?;
            file.write_all(&contents)?;
            Ok(file)
        };
        let created = create();
        created.map_err(|error| FileError::new("create an overlay in", overlays, error).into())
    }

    /// Opens the overlay of the disk with this number, or creates it.
    fn persistent_overlay(
        &self,
        path: &Path,
        number: usize,
        dir: &Path,
    ) -> Result<File, EngineError> {
        let overlays = create_overlay_dir(dir)?;
        let overlay = overlays.join(format!("disk{number}.qcow2"));
        let record = overlays.join(format!("disk{number}.base"));
        if overlay.exists() {
            if read_base(&record)? != *self {
                return Err(EngineError::BaseChanged {
                    path: path.to_owned(),
                    overlay,
                });
            }
        } else {
            let json = serde_json::to_vec(self)
                .map_err(|error| FileError::new("write", &record, error.into()))?;
            // First: without its record, an overlay could not be used again.
            write_file(&record, &json)?;
            write_file(&overlay, &self.empty_overlay(path)?)?;
        }
        let file = open_file(&overlay, true);
        let file = file.map_err(|error| FileError::new("open", &overlay, error))?;
        // QEMU keeps the lock, because it has this descriptor.
        file.try_lock()
            .map_err(|_| EngineError::DiskInUse { path: overlay })?;
        Ok(file)
    }
}

fn create_overlay_dir(dir: &Path) -> Result<PathBuf, FileError> {
    let path = dir.join(OVERLAYS);
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(FileError::new("create", path, error))
        }
        _ => Ok(path),
    }
}

fn read_base(path: &PathBuf) -> Result<Base, FileError> {
    read_file(path, MAX_RECORD_BYTES)
        .and_then(|json| Ok(serde_json::from_slice(&json)?))
        .map_err(|error| FileError::new("read", path, error))
}

/// Opens a file that QEMU opens again, through `/proc/self/fd`, as this user.
pub(super) fn open_for_user(
    role: &'static str,
    path: &Path,
    uid: Option<u32>,
) -> Result<File, EngineError> {
    let check = |file: File| {
        if uid.is_some() && file.metadata()?.mode() & READ_BY_OTHERS == 0 {
            let message = "the user of the box cannot read it; run `chmod o+r` on the file, whose \
                directories can stay private";
            return Err(io::Error::new(ErrorKind::PermissionDenied, message));
        }
        Ok(file)
    };
    let file = open_file(path, false).and_then(check);
    file.map_err(guest_file(role, path))
}

fn open_file(path: &Path, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        // A FIFO would block.
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}

fn guest_file(role: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::GuestFile {
        role,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    /// Returns a directory with a kernel and a base, and the options of a guest with this disk.
    fn guest(access: DiskAccess) -> (TempDir, QemuOptions) {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, base) = (dir.path().join("kernel"), dir.path().join("base"));
        fs::write(&kernel, "kernel").unwrap();
        fs::write(&base, "base").unwrap();
        let mut options = QemuOptions::new(kernel);
        options.disks.push(Disk::read_only(base).access(access));
        (dir, options)
    }

    #[test]
    fn each_file_has_a_descriptor_of_its_own() {
        let (dir, options) = guest(DiskAccess::Overlay);
        let files = open(&options, dir.path(), 10, None).unwrap();
        assert_eq!((files.kernel, files.initrd), (10, None));
        let disk = &files.disks[0];
        assert_eq!((disk.image, disk.overlay), (11, Some(12)));
        let numbers = files.fds.iter().map(|(number, _)| *number);
        assert_eq!(numbers.collect::<Vec<_>>(), [10, 11, 12]);
    }

    #[test]
    fn a_temporary_overlay_has_no_name() {
        let (dir, options) = guest(DiskAccess::Overlay);
        let _files = open(&options, dir.path(), 10, None).unwrap();
        let overlays = fs::read_dir(dir.path().join(OVERLAYS)).unwrap();
        assert_eq!(overlays.count(), 0);
    }

    #[test]
    fn a_persistent_overlay_is_kept_while_its_base_is_the_same() {
        let (dir, options) = guest(DiskAccess::Persistent);
        let overlay = dir.path().join("overlays/disk0.qcow2");
        drop(open(&options, dir.path(), 10, None).unwrap());
        fs::write(&overlay, "written by the guest").unwrap();
        drop(open(&options, dir.path(), 10, None).unwrap());
        assert_eq!(fs::read(&overlay).unwrap(), b"written by the guest");

        // As a rebuilt image does: another file with the same contents.
        let base = &options.disks[0].path;
        fs::rename(base, dir.path().join("old")).unwrap();
        fs::write(base, "base").unwrap();
        let error = open(&options, dir.path(), 10, None).unwrap_err();
        assert!(matches!(error, EngineError::BaseChanged { .. }), "{error}");
        assert_eq!(fs::read(&overlay).unwrap(), b"written by the guest");
    }

    #[test]
    fn a_persistent_overlay_of_a_base_that_was_written_to_is_refused() {
        let (dir, options) = guest(DiskAccess::Persistent);
        drop(open(&options, dir.path(), 10, None).unwrap());
        fs::write(&options.disks[0].path, "changed").unwrap();
        let error = open(&options, dir.path(), 10, None).unwrap_err();
        assert!(matches!(error, EngineError::BaseChanged { .. }), "{error}");
    }

    #[test]
    fn a_persistent_overlay_is_refused_while_a_process_has_it() {
        let (dir, options) = guest(DiskAccess::Persistent);
        let files = open(&options, dir.path(), 10, None).unwrap();
        let error = open(&options, dir.path(), 10, None).unwrap_err();
        assert!(matches!(error, EngineError::DiskInUse { .. }), "{error}");
        drop(files);
        open(&options, dir.path(), 10, None).unwrap();
    }

    #[test]
    fn a_kernel_that_the_user_of_the_box_cannot_read_is_an_error_with_the_remedy() {
        let (dir, options) = guest(DiskAccess::ReadOnly);
        for path in [&options.kernel, &options.disks[0].path] {
            fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        }
        open(&options, dir.path(), 10, None).unwrap();
        let error = open(&options, dir.path(), 10, Some(1000)).unwrap_err();
        let message = vmm_protocol::with_causes(&error);
        assert!(message.starts_with("cannot open the kernel"), "{message}");
        assert!(message.contains("chmod o+r"), "{message}");
        // A disk needs no permission.
        fs::set_permissions(&options.kernel, Permissions::from_mode(0o604)).unwrap();
        open(&options, dir.path(), 10, Some(1000)).unwrap();
    }
}
