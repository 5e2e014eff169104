use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

/// A file that could not be read or written, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried, as an infinitive: "write", "read".
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl FileError {
    /// An `io::Error` that knows its file.
    pub fn new(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self {
            action,
            path: path.into(),
            source,
        }
    }
}

/// Whether it is want of descriptors or memory: that passes, and says nothing about a file or a
/// process.
pub fn is_resource_exhaustion(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}

/// Replaces a file as a whole and for good: to a temporary file beside it, synced, then renamed,
/// and the directory synced. A reader, or a crash, sees the old contents or the new ones.
///
/// The file is readable by its owner only (mode 0600). Blocks on the disk. The temporary file of
/// `name` is `.name.tmp`, so that a crash leaves one at most; the writers of one file have to take
/// turns.
///
/// # Errors
///
/// [`FileError`], naming `path`; the old file is then as it was, unless it was only the sync of the
/// directory that failed.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    replace(path, contents, File::sync_all)?;
    sync_directory_of(path).map_err(|source| FileError::new("write", path, source))
}

/// [`write_file`] for what means nothing after a crash of the machine: it does not wait for the
/// disk, and such a crash can leave anything in the file.
pub fn write_file_unsynced(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    replace(path, contents, |_| Ok(()))
}

fn replace(
    path: &Path,
    contents: &[u8],
    sync: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), FileError> {
    let temporary = temporary_of(path);
    let replaced = fill(&temporary, contents)
        .and_then(|file| sync(&file))
        .and_then(|()| fs::rename(&temporary, path));
    replaced.map_err(|error| {
        // It may not even exist.
        let _ = fs::remove_file(&temporary);
        FileError::new("write", path, error)
    })
}

/// What [`write_file`] has written, up to `longest` bytes. Neither waits nor goes elsewhere: a
/// payload can put anything in its place.
///
/// # Errors
///
/// What the system says; `InvalidData` for what is no regular file, or longer.
pub fn read_file(path: &Path, longest: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path, OpenOptions::new().read(true))?;
    let mut contents = Vec::new();
    if file
        .take(longest.saturating_add(1))
        .read_to_end(&mut contents)? as u64
        > longest
    {
        let message = format!("it is longer than {longest} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(contents)
}

/// A file in a box's directory that what a payload prints, or its shim, is appended to; made with
/// mode 0600. Neither waits nor goes elsewhere, as [`read_file`].
///
/// # Errors
///
/// [`FileError`], also for what is no regular file.
pub fn open_log(path: &Path) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    open_regular(path, options.append(true).create(true).mode(0o600))
        .map_err(|source| FileError::new("open", path, source))
}

fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no regular file",
        )),
    }
}

/// More than any record takes that is not the runtime's own, in bytes.
pub(crate) const LONGEST_RECORD: u64 = 1 << 20;

/// Keeps room on the disk for the first [`write_file`] to `path`, which then does not fail for lack
/// of it; without room, nothing is kept.
pub fn reserve(path: &Path) {
    /// More than any record takes; one block of most file systems.
    const ROOM: [u8; 4096] = [0; 4096];
    let temporary = temporary_of(path);
    if open(&temporary)
        .and_then(|mut file| file.write_all(&ROOM))
        .is_err()
    {
        let _ = fs::remove_file(&temporary);
    }
}

/// Where [`write_file`] prepares what is to be in `path`.
pub(crate) fn temporary_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

/// Truncates afterwards, not before: it may hold the room that was kept for it.
fn fill(path: &Path, contents: &[u8]) -> io::Result<File> {
    let mut file = open(path)?;
    file.write_all(contents)?;
    file.set_len(contents.len() as u64)?;
    Ok(file)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    open_regular(path, &mut options)
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match File::open(parent)?.sync_all() {
        // What a file system says that cannot sync directories, fsync(2).
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
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_file(&path, b"a longer first one").unwrap();
        write_file(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crashed_writer_left_is_no_obstacle_and_no_part_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(temporary_of(&path), "a torn one, and longer").unwrap();
        write_file(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_written_into_the_room_kept_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        reserve(&path);
        let room = fs::metadata(temporary_of(&path)).unwrap();
        assert!(room.blocks() * 512 >= 4096, "{room:?}");
        write_file(&path, b"x").unwrap();
        let file = fs::metadata(&path).unwrap();
        assert_eq!((file.ino(), file.len()), (room.ino(), 1));
    }

    #[test]
    fn what_is_no_regular_file_is_neither_waited_for_nor_read() {
        /// Far longer than anything takes on a busy machine.
        const DEADLINE: Duration = Duration::from_secs(60);
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        mkfifo(&path("fifo"), Mode::S_IRUSR).unwrap();
        write_file(&path("elsewhere"), b"x").unwrap();
        symlink(path("elsewhere"), path("link")).unwrap();
        fs::create_dir(path("directory")).unwrap();
        for name in ["fifo", "link", "directory"] {
            let (tell, told) = mpsc::channel();
            let path = path(name);
            thread::spawn(move || tell.send(read_file(&path, 1).is_err()));
            assert_eq!(told.recv_timeout(DEADLINE), Ok(true), "{name}");
        }
        assert_eq!(read_file(&path("elsewhere"), 1).unwrap(), b"x");
        assert!(read_file(&path("elsewhere"), 0).is_err());
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_file(&path, b"x").unwrap_err();
        assert_eq!(error.path, path);
        assert!(error.to_string().contains("taken"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
