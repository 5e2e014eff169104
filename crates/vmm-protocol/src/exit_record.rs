use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bounds::truncate_text;
use crate::files::{read_record, record_to_json, write_file, write_file_unsynced};
use crate::{Ending, FileError};

/// The record of how a run ended, which a shim writes to the file `exit`.
///
/// It holds more than an exit status: the message and place of a panic, why a payload could not
/// start, and whether the end was requested. A shim that SIGKILL, a power cut, or a library that calls
/// `exit(3)` has ended writes no record.
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
        write_file(path, &record_to_json(path, self)?)
    }

    /// Writes the record atomically, without a sync to disk.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file.
    pub fn write_unsynced(&self, path: &Path) -> Result<(), FileError> {
        write_file_unsynced(path, &record_to_json(path, self)?)
    }

    /// Reads a record. Returns `None` if the file does not exist.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file. Its source has the kind
    /// [`InvalidData`](io::ErrorKind::InvalidData) if the content is not a complete record.
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
        read_record(path, |text| {
            serde_json::from_slice(text).map_err(|error| {
                // It quotes the record.
                let mut message = error.to_string();
                truncate_text(&mut message);
                io::Error::new(io::ErrorKind::InvalidData, message)
            })
        })
    }
}
