//! What checks of KVM have found on this host, in files that the shims of the host share.

use std::env;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_protocol::{DEFAULT_PATH, FileError, boot_id, read_file, write_file_unsynced};

use crate::qemu::command_line::PROGRAM;

/// Room for a reason of 4 KiB in which each byte is escaped.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// How often to look whether another shim has ended its check.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a check is valid for: a boot of the host, a program of QEMU, and a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subject {
    pub(super) boot_id: Option<String>,
    pub(super) qemu: Option<FileVersion>,
    pub(super) kernel: FileVersion,
}

impl Subject {
    /// Returns the subject of a check on this host, now.
    pub(super) fn this(kernel: &File) -> io::Result<Self> {
        let mut dirs = env::split_paths(DEFAULT_PATH);
        let qemu = dirs.find_map(|dir| fs::metadata(dir.join(PROGRAM)).ok());
        Ok(Self {
            boot_id: boot_id().ok(),
            qemu: qemu.as_ref().map(FileVersion::of),
            kernel: FileVersion::of(&kernel.metadata()?),
        })
    }
}

/// A file as it is until its contents, its owner or its mode change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileVersion {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Seconds since 1970.
    pub(super) changed: i64,
}

impl FileVersion {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.len(),
            changed: file.ctime(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) subject: Subject,
    /// Why KVM cannot be used, if it cannot.
    pub(super) failure: Option<String>,
}

impl Record {
    /// Returns the path of the record in a cache directory.
    pub(super) fn path(cache_dir: &Path, subject: &Subject) -> PathBuf {
        let FileVersion { device, inode, .. } = subject.kernel;
        cache_dir.join(format!("kvm-{device}-{inode}.json"))
    }

    /// Returns the record of this subject, if there is one.
    pub(super) fn read(path: &Path, subject: &Subject) -> Option<Self> {
        let json = read_file(path, MAX_RECORD_BYTES).ok()?;
        let record: Self = serde_json::from_slice(&json).ok()?;
        (record.subject == *subject).then_some(record)
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), FileError> {
        let json = serde_json::to_vec(self)
            .map_err(|error| FileError::new("write", path, error.into()))?;
        write_file_unsynced(path, &json)
    }
}

/// The right to check and to write a record, which one shim has at a time.
#[derive(Debug)]
pub(super) struct RecordLock {
    /// Unlocked when it is closed, also by the end of the process.
    _file: File,
    /// Whether another shim had the lock meanwhile.
    pub(super) has_waited: bool,
}

impl RecordLock {
    /// Waits for the lock of a record, and creates its directory.
    ///
    /// # Errors
    ///
    /// The kind `TimedOut` if another shim keeps the lock; any other kind if the directory cannot be written, or its
    /// file system has no locks.
    pub(super) fn take(record: &Path, timeout: Duration) -> io::Result<Self> {
        if let Some(dir) = record.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = options.open(record.with_extension("lock"))?;
        let deadline = Instant::now() + timeout;
        let mut has_waited = false;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    return Ok(Self {
                        _file: file,
                        has_waited,
                    });
                }
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    has_waited = true;
                    thread::sleep(POLL_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}
