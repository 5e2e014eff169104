use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{MAX_RECORD_BYTES, read_file};
use crate::{Ending, FileError, write_file};

/// The record of how a run ended, which a shim writes to the file `exit`.
///
/// It holds more than an exit status: the message and place of a panic, why a payload could not
/// start, and whether the end was requested. There is no record if SIGKILL, a power cut, or a
/// library that calls `exit(3)` ended the shim.
///
/// A payload can forge the record. After writing it, a shim exits with the
/// [code of its ending](Ending::shell_code); a record that does not match the exit status of the
/// shim is therefore not genuine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The pid of the shim that wrote the record.
    pub pid: u32,
    /// Whether a signal to stop, or the hang-up of the watchdog, requested the end.
    #[serde(default)]
    pub requested: bool,
    /// How the run ended.
    #[serde(flatten)]
    pub ending: Ending,
}

impl ExitRecord {
    /// Writes the record atomically and syncs it to disk.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec(self)
            .map_err(|error| FileError::new("write", path, error.into()))?;
        write_file(path, &text)
    }

    /// Reads a record. Returns `None` if the file does not exist.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file. Its source has the kind
    /// [`InvalidData`](io::ErrorKind::InvalidData) if the content is not a complete record.
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
        let read_error = |source| FileError::new("read", path, source);
        match read_file(path, MAX_RECORD_BYTES) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| read_error(io::Error::new(io::ErrorKind::InvalidData, error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(read_error(error)),
        }
    }
}
