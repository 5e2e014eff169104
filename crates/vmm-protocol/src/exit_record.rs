use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{LONGEST_RECORD, read_file};
use crate::{Ending, FileError, write_file};

/// What a shim leaves behind in the file `exit`.
///
/// It says more than the exit status: a panic's message and place, why a payload could not be
/// started, and whether the end was asked for. It is missing when SIGKILL, the machine, or
/// a library that calls `exit(3)` ended the shim.
///
/// A payload can forge it. A shim that writes it exits with the
/// [code of its ending](Ending::shell_code): a record that does not fit the exit status of the shim
/// is not its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Whose: the shim's pid.
    pub pid: u32,
    /// True if somebody had asked for the end: a signal to stop, or the watchdog.
    #[serde(default)]
    pub requested: bool,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Ending,
}

impl ExitRecord {
    /// Writes it, whole and synced.
    ///
    /// # Errors
    ///
    /// [`FileError`], naming the file.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec(self)
            .map_err(|error| FileError::new("write", path, error.into()))?;
        write_file(path, &text)
    }

    /// `None` when there is no such file.
    ///
    /// # Errors
    ///
    /// [`FileError`], naming the file; of kind [`InvalidData`](io::ErrorKind::InvalidData) when it
    /// is torn or garbage.
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
        let failed = |source| FileError::new("read", path, source);
        match read_file(path, LONGEST_RECORD) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}
