use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use serde::Serialize;

/// An I/O error with the path of its file. To print it with the error of the operating system, use
/// [`with_causes`](crate::with_causes).
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// The operation that failed, as an infinitive: "write", "read".
    pub action: &'static str,
    /// The path of the file.
    pub path: PathBuf,
    /// The error that the operating system returned.
    pub source: io::Error,
}

impl FileError {
    /// Creates an error from the operation, the path, and the error of the operating system.
    pub fn new(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self {
            action,
            path: path.into(),
            source,
        }
    }
}

/// Returns true if the error means that file descriptors or memory are exhausted.
///
/// Such an error is temporary. It does not mean that a file is damaged or that a process has
/// exited.
pub fn is_resource_exhaustion(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}

/// Replaces a file atomically and durably.
///
/// Writes a temporary file in the same directory, syncs it, renames it to `path`, and syncs the
/// directory. A reader sees either the old content or the new one, also after a crash. The file has
/// the mode 0600. The call blocks until the disk has stored the file.
///
/// The temporary file of `name` is `.name.tmp`. Writers of the same file must exclude each other.
///
/// # Errors
///
/// [`FileError`] with `path`. The old file is then unchanged, unless only the sync of the directory
/// failed.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    replace(path, contents, File::sync_all)?;
    sync_parent_directory(path).map_err(|source| FileError::new("write", path, source))
}

/// Replaces a file atomically, without a sync to disk.
///
/// Use it instead of [`write_file`] for content that has no meaning after a reboot: after a power
/// cut, the file may have any content.
///
/// # Errors
///
/// [`FileError`] with `path`. The old file is then unchanged.
pub fn write_file_unsynced(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    replace(path, contents, |_| Ok(()))
}

/// Syncs a file that [`write_file_unsynced`] has written, and its name, to disk. Does nothing if the
/// file does not exist.
pub(crate) fn sync_file(path: &Path) -> Result<(), FileError> {
    let synced = open_regular_file(path, OpenOptions::new().read(true))
        .and_then(|file| file.sync_all())
        .and_then(|()| sync_parent_directory(path));
    match synced {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        synced => synced.map_err(|source| FileError::new("sync", path, source)),
    }
}

fn replace(
    path: &Path,
    contents: &[u8],
    sync: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), FileError> {
    let temporary = temporary_path(path);
    let replaced = write_contents(&temporary, contents)
        .and_then(|file| sync(&file))
        .and_then(|()| fs::rename(&temporary, path));
    replaced.map_err(|error| {
        // Fails if the temporary file was never created.
        let _ = fs::remove_file(&temporary);
        FileError::new("write", path, error)
    })
}

/// Reads a file that [`write_file`] has written, if it has at most `max_bytes`.
///
/// A payload can put anything in place of the file. The call therefore does not block on a FIFO,
/// and does not follow a symbolic link.
///
/// # Errors
///
/// The error of the operating system, or one of the kind
/// [`InvalidData`](io::ErrorKind::InvalidData) if it is not a regular file or is too long.
pub fn read_file(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = open_regular_file(path, OpenOptions::new().read(true))?;
    let mut contents = Vec::new();
    let length = file
        .take(max_bytes.saturating_add(1))
        .read_to_end(&mut contents)?;
    if length as u64 > max_bytes {
        let message = format!("the file is longer than {max_bytes} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(contents)
}

/// Opens a log file in a box directory for appending. Creates it with the mode 0600.
///
/// As with [`read_file`], the call does not block on a FIFO, and does not follow a symbolic link.
///
/// # Errors
///
/// [`FileError`], also if `path` is not a regular file.
pub fn open_log(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    open_regular_file(path, options.append(true).create(true).mode(0o600))
        .map_err(|source| FileError::new("open", path, source))
}

/// Opens a file without following a symbolic link or blocking on a FIFO. Returns an error if it is
/// not a regular file.
pub(crate) fn open_regular_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not a regular file",
        ))
    }
}

/// The maximum size of a record, except that of the runtime's own `box.json`.
pub(crate) const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Reads a record. Returns `None` if the file does not exist.
pub(crate) fn read_record<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> io::Result<T>,
) -> Result<Option<T>, FileError> {
    match read_file(path, MAX_RECORD_BYTES).and_then(|text| parse(&text)) {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::new("read", path, source)),
    }
}

/// Converts a record to the JSON that its file contains.
pub(crate) fn record_to_json(path: &Path, record: &impl Serialize) -> Result<Vec<u8>, FileError> {
    serde_json::to_vec(record).map_err(|error| FileError::new("write", path, error.into()))
}

/// Reserves disk space for the first [`write_file`] to `path`, so that it succeeds on a full disk.
///
/// Reserves nothing if the disk is already full.
pub fn reserve_space(path: &Path) {
    /// Larger than any record of a shim, and one block on most file systems.
    const RESERVED: [u8; 4096] = [0; 4096];
    let temporary = temporary_path(path);
    if open_for_writing(&temporary)
        .and_then(|mut file| file.write_all(&RESERVED))
        .is_err()
    {
        let _ = fs::remove_file(&temporary);
    }
}

/// Returns the path of the temporary file that [`write_file`] uses for `path`.
pub(crate) fn temporary_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

/// Truncates the file after the write, not before: the file may hold the reserved space.
fn write_contents(path: &Path, contents: &[u8]) -> io::Result<File> {
    let mut file = open_for_writing(path)?;
    file.write_all(contents)?;
    file.set_len(contents.len() as u64)?;
    Ok(file)
}

fn open_for_writing(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    open_regular_file(path, &mut options)
}

/// Syncs the name of a file or directory to disk, by a sync of the directory that contains it.
/// Blocks until the disk has stored it.
///
/// Succeeds on a file system that cannot sync directories.
///
/// # Errors
///
/// The error of the operating system.
pub fn sync_parent_directory(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match File::open(parent)?.sync_all() {
        // EINVAL: the file system cannot sync directories, fsync(2).
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn write_file_replaces_a_file_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_file(&path, b"longer first content").unwrap();
        write_file(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn write_file_overwrites_the_temporary_file_of_a_crashed_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(temporary_path(&path), "incomplete, and longer").unwrap();
        write_file(&path, b"complete").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"complete");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn write_file_uses_the_reserved_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        reserve_space(&path);
        let reserved = fs::metadata(temporary_path(&path)).unwrap();
        assert!(reserved.blocks() * 512 >= 4096, "{reserved:?}");
        write_file(&path, b"x").unwrap();
        let file = fs::metadata(&path).unwrap();
        assert_eq!((file.ino(), file.len()), (reserved.ino(), 1));
    }

    #[test]
    fn read_file_rejects_anything_but_a_regular_file() {
        /// Longer than any step takes on a busy machine.
        const DEADLINE: Duration = Duration::from_secs(60);
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        mkfifo(&path("fifo"), Mode::S_IRUSR).unwrap();
        write_file(&path("elsewhere"), b"x").unwrap();
        symlink(path("elsewhere"), path("link")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        for name in ["fifo", "link", "directory"] {
            let (sender, receiver) = mpsc::channel();
            let path = path(name);
            thread::spawn(move || sender.send(read_file(&path, 1).is_err()));
            assert_eq!(receiver.recv_timeout(DEADLINE), Ok(true), "{name}");
        }
        assert_eq!(read_file(&path("elsewhere"), 1).unwrap(), b"x");
        assert!(read_file(&path("elsewhere"), 0).is_err());
    }

    #[test]
    fn a_failed_write_names_the_file_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_file(&path, b"x").unwrap_err();
        assert_eq!(error.path, path);
        assert!(error.to_string().contains("taken"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
