use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::box_files::FILES;
use crate::files::{
    MAX_RECORD_BYTES, open_regular_file, read_file, reserve_space, sync_file, write_file_unsynced,
};
use crate::{ExitRecord, FileError, PidRecord, open_log};

/// The environment variable that holds the path of the box directory.
///
/// The payload's descendants inherit it, so the runtime can identify them.
pub const BOX_DIR_VARIABLE: &str = "VMM_BOX_DIR";

/// The directory of a box, with a method for each use of its files.
///
/// The payload finds its box directory in [`VMM_BOX_DIR`](BOX_DIR_VARIABLE). A payload that runs as
/// the same user as its shim can write to every file there. Readers therefore follow three rules:
///
/// * What the kernel reports takes precedence over what a file contains.
/// * Every read is limited in size and rejects anything but a regular file.
/// * Cleanup never depends on a file alone.
///
/// | file | written by | what a payload can achieve by writing to it |
/// |---|---|---|
/// | `box.json` | the runtime | the next runtime that opens the home finds a damaged box, or a box with another spec or another last ending |
/// | `shim.pid` | the shim | nothing while its runtime runs; the next runtime also searches `/proc` for the shim, and reports a forged ending only for a run whose end it did not observe |
/// | `payload.pid` | the shim | the next runtime shows no pid of the payload, or that of another live process |
/// | `cgroup` | the shim | nothing, because control groups are found by name; only groups that an earlier runtime created elsewhere are not found |
/// | `exit` | the shim | nothing while the kernel reports the exit status of the shim: a record that does not match it counts as a crash; otherwise the payload can forge how it ended, but cleanup runs all the same |
/// | `shim.stderr` | the shim | false messages of the shim |
/// | `helpers.log` | the shim, with the output of helper processes | false messages of helpers |
/// | `helpers.count` | the shim | a false number of helper processes in the metrics of the next runtime |
/// | `console.log`, `console.log.1`, … | the shim, with the payload's output | false output of the payload |
/// | `console.dropped` | the shim | a false number of deleted bytes |
/// | `notify.sock` | the shim | the start fails |
/// | `paused` | the shim | the runtime shows the box as paused, and does not probe its health, until it is resumed |
/// | `control.sock` | the shim | no client can run a command in the box |
///
/// A payload that deletes all records of its run, and whose shim is killed while no runtime is attached, hides that run.
///
/// A directory in place of a file of a run or of a log makes every later start of the box fail, until
/// the box is removed.
///
/// # After a power cut
///
/// Only what a runtime needs after the next boot is synced to disk. The first rows are about the home
/// of the runtime, which contains the box directories.
///
/// | file | synced | why |
/// |---|---|---|
/// | the home, and `boxes/` in it | the directory above each, when a runtime opens the home | without them, the boxes in them are lost |
/// | `lock`, `cache/` in the home | no | the next runtime creates `lock` again, and an engine what it keeps in `cache/` |
/// | `box.json` | file and directory, at each change | the box and how it ended must not be lost once they were reported; nor the start of a run, if a restart or an automatic removal follows its end |
/// | the box directory itself | the directory above it, when it is created, and when it is renamed for removal | a reported creation or removal must last; the files of a removed box are deleted after that, and the next runtime deletes the rest |
/// | `exit` of a detached shim | file and directory | it is the only record of an end until a runtime has saved that end, and there may be no runtime |
/// | `exit` of an attached shim | file and directory, by the runtime, if it cannot save the end in `box.json` before it reports the end | otherwise `box.json` has the end |
/// | `shim.pid`, `payload.pid`, `cgroup`, `notify.sock`, `paused`, `control.sock` | no | no process and no control group outlives a power cut |
/// | `console.log`, `console.dropped`, `helpers.log`, `helpers.count`, `shim.stderr` | no | output of a run that the power cut ended; the kernel writes it back as it does for any log |
///
/// Records are replaced atomically. Reads do not follow a symbolic link, and do not block on a FIFO.
///
/// ```
/// use vmm_protocol::{BoxDir, PidLookup};
///
/// # let home = tempfile::tempdir()?;
/// # let path = home.path();
/// let dir = BoxDir::new(path);
/// let is_running = match dir.shim_record()? {
///     Some(shim) => matches!(shim.lookup()?, PidLookup::Alive(_)),
///     None => false,
/// };
/// # assert!(!is_running);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BoxDir {
    path: PathBuf,
}

/// The largest accepted `console.dropped`; more digits than a `u64` has.
const MAX_COUNT_BYTES: u64 = 32;

impl BoxDir {
    /// Creates a value for the directory at `path`. Does not access it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of `box.json`, whose content belongs to the runtime.
    pub fn spec_path(&self) -> PathBuf {
        self.path.join(FILES.spec)
    }

    /// Reads `shim.pid`. Returns `None` if the file does not exist.
    ///
    /// # Errors
    ///
    /// See [`PidRecord::read`].
    pub fn shim_record(&self) -> Result<Option<PidRecord>, FileError> {
        PidRecord::read(&self.path.join(FILES.shim_pid))
    }

    /// Writes `shim.pid`. Does not sync it, because a shim does not outlive a power cut.
    ///
    /// # Errors
    ///
    /// See [`PidRecord::write`].
    pub fn write_shim_record(&self, shim: &PidRecord) -> Result<(), FileError> {
        shim.write(&self.path.join(FILES.shim_pid))
    }

    /// Reads `payload.pid`. Returns `None` if the file does not exist.
    ///
    /// # Errors
    ///
    /// See [`PidRecord::read`].
    pub fn payload_record(&self) -> Result<Option<PidRecord>, FileError> {
        PidRecord::read(&self.path.join(FILES.payload_pid))
    }

    /// Writes `payload.pid`. Does not sync it, because a payload does not outlive a power cut.
    ///
    /// # Errors
    ///
    /// See [`PidRecord::write`].
    pub fn write_payload_record(&self, payload: &PidRecord) -> Result<(), FileError> {
        payload.write(&self.path.join(FILES.payload_pid))
    }

    /// Reads `exit`, which records how the last run ended. Returns `None` if the file does not exist.
    ///
    /// # Errors
    ///
    /// See [`ExitRecord::read`].
    pub fn exit_record(&self) -> Result<Option<ExitRecord>, FileError> {
        ExitRecord::read(&self.path.join(FILES.exit))
    }

    /// Reserves disk space for [`write_exit_record`](Self::write_exit_record): the output of the
    /// payload may fill the disk. Reserves nothing if the disk is already full.
    pub fn reserve_exit_record(&self) {
        reserve_space(&self.path.join(FILES.exit));
    }

    /// Writes `exit`, and syncs it to disk.
    ///
    /// # Errors
    ///
    /// See [`ExitRecord::write`].
    pub fn write_exit_record(&self, exit: &ExitRecord) -> Result<(), FileError> {
        exit.write(&self.path.join(FILES.exit))
    }

    /// Writes `exit`, and does not sync it: for a shim whose runtime saves the end.
    ///
    /// # Errors
    ///
    /// See [`ExitRecord::write_unsynced`].
    pub fn write_exit_record_unsynced(&self, exit: &ExitRecord) -> Result<(), FileError> {
        exit.write_unsynced(&self.path.join(FILES.exit))
    }

    /// Syncs `exit` to disk: for a runtime that cannot save the end. Does nothing if the file does
    /// not exist.
    ///
    /// # Errors
    ///
    /// [`FileError`], also if it is not a regular file.
    pub fn sync_exit_record(&self) -> Result<(), FileError> {
        sync_file(&self.path.join(FILES.exit))
    }

    /// Reads `cgroup`, the directories of the payload's control groups. A payload can change the
    /// file, so they are only a hint.
    pub(crate) fn control_groups(&self) -> Result<Vec<PathBuf>, FileError> {
        let path = self.path.join(FILES.control_group);
        let text = read_file(&path, MAX_RECORD_BYTES)
            .map_err(|source| FileError::new("read", path, source))?;
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        Ok(lines.map(|line| OsStr::from_bytes(line).into()).collect())
    }

    /// Writes `cgroup`. Does not sync it.
    pub(crate) fn write_control_groups(&self, dirs: &[PathBuf]) -> Result<(), FileError> {
        let mut text = Vec::new();
        for dir in dirs {
            text.extend_from_slice(dir.as_os_str().as_encoded_bytes());
            text.push(b'\n');
        }
        write_file_unsynced(&self.path.join(FILES.control_group), &text)
    }

    /// Opens `shim.stderr` for appending, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`FileError`], also if it is not a regular file.
    pub fn open_shim_stderr(&self) -> Result<File, FileError> {
        open_log(&self.path.join(FILES.shim_stderr))
    }

    /// Creates or removes `paused`, which shows whether the payload is paused.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file.
    pub fn write_paused(&self, paused: bool) -> Result<(), FileError> {
        let path = self.path.join(FILES.paused);
        if paused {
            return write_file_unsynced(&path, b"");
        }
        delete(path)
    }

    /// Returns whether `paused` exists.
    pub fn is_paused(&self) -> bool {
        fs::symlink_metadata(self.path.join(FILES.paused)).is_ok()
    }

    /// Opens `helpers.log` for appending, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`FileError`], also if it is not a regular file.
    pub fn open_helpers_log(&self) -> Result<File, FileError> {
        open_log(&self.path.join(FILES.helpers))
    }

    /// Returns the path of the console file that has been rotated `number` times. A higher number
    /// means an older file; 0 is `console.log` itself.
    pub fn console_path(&self, number: u8) -> PathBuf {
        self.path.join(FILES.rotated_console(number))
    }

    /// Opens `console.log` for appending, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`FileError`], also if it is not a regular file.
    pub fn open_console_for_append(&self) -> Result<File, FileError> {
        open_log(&self.console_path(0))
    }

    /// Opens the console file that has been rotated `number` times for reading.
    ///
    /// # Errors
    ///
    /// The error of the operating system: `ELOOP` for a symbolic link, `ENXIO` for a socket. For
    /// anything else that is not a regular file, an error of the kind
    /// [`InvalidData`](io::ErrorKind::InvalidData).
    pub fn open_console(&self, number: u8) -> io::Result<File> {
        open_regular_file(&self.console_path(number), File::options().read(true))
    }

    /// Reads `console.dropped`, the number of output bytes that rotation has deleted. Returns 0 if
    /// the file does not exist or does not contain a number.
    pub fn dropped_console_bytes(&self) -> u64 {
        self.read_count(FILES.console_dropped).unwrap_or(0)
    }

    /// Writes `console.dropped`. Does not sync it.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file.
    pub fn write_dropped_console_bytes(&self, bytes: u64) -> Result<(), FileError> {
        self.write_count(FILES.console_dropped, bytes)
    }

    /// Reads `helpers.count`, the number of helper processes of the payload. Returns 0 if the file
    /// does not exist or does not contain a number.
    pub fn helper_count(&self) -> u32 {
        let count = self.read_count(FILES.helper_count);
        count.and_then(|count| count.try_into().ok()).unwrap_or(0)
    }

    /// Writes `helpers.count`. Does not sync it.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file.
    pub fn write_helper_count(&self, count: u32) -> Result<(), FileError> {
        self.write_count(FILES.helper_count, count.into())
    }

    fn read_count(&self, name: &str) -> Option<u64> {
        let text = read_file(&self.path.join(name), MAX_COUNT_BYTES).ok()?;
        str::from_utf8(&text).ok()?.trim().parse().ok()
    }

    fn write_count(&self, name: &str, count: u64) -> Result<(), FileError> {
        write_file_unsynced(&self.path.join(name), format!("{count}\n").as_bytes())
    }

    /// Returns the path of the socket over which the shim [serves clients](crate::frames).
    pub fn control_socket_path(&self) -> PathBuf {
        self.path.join(FILES.control)
    }

    /// Returns the path of the socket to which a payload sends its
    /// [readiness](crate::Ready::Notified).
    pub fn notify_socket_path(&self) -> PathBuf {
        self.path.join(FILES.notify)
    }

    /// Returns whether there is a record of the last run, also one that cannot be read. Uses no file descriptor.
    pub fn has_run_records(&self) -> bool {
        let is_missing = |name| match fs::symlink_metadata(self.path.join(name)) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(_) => false,
        };
        !FILES.run_records().into_iter().all(is_missing)
    }

    /// Deletes the files of one run, which would otherwise be taken for those of the next run.
    /// Includes the temporary files that a crashed writer may have left.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the first file that cannot be deleted.
    pub fn delete_run_files(&self) -> Result<(), FileError> {
        FILES.run_files(&self.path).into_iter().try_for_each(delete)
    }

    /// Deletes what no run may leave: its sockets, the record of a pause, temporary files. The shim
    /// must have ended.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the first file that cannot be deleted.
    pub fn delete_transient_files(&self) -> Result<(), FileError> {
        let files = FILES.transient_files(&self.path);
        files.into_iter().try_for_each(delete)
    }
}

/// Deletes a file, if it exists.
fn delete(path: PathBuf) -> Result<(), FileError> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("delete", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
