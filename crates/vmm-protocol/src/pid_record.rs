use std::io;
use std::path::Path;
use std::process;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::{LONGEST_RECORD, read_file, write_file_unsynced};
use crate::{FileError, ProcessIdentity, write_file};

/// Who a process is, as the files `shim.pid` and `payload.pid` say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
pub struct PidRecord {
    /// The pid, in the pid namespace of the runtime.
    pub pid: u32,
    /// What tells it from others with this pid; `None` in older records, which hold the pid alone.
    #[serde(flatten)]
    pub identity: Option<ProcessIdentity>,
}

/// As written. A flattened `Option` would take a damaged identity for none.
#[derive(Deserialize)]
struct Raw {
    pid: u32,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl TryFrom<Raw> for PidRecord {
    type Error = serde_json::Error;

    fn try_from(Raw { pid, rest }: Raw) -> serde_json::Result<Self> {
        let is_older = ["start_time", "boot_id", "pidfd_inode"]
            .iter()
            .all(|field| !rest.contains_key(*field));
        let identity = match is_older {
            true => None,
            false => Some(serde_json::from_value(Value::Object(rest))?),
        };
        Ok(Self { pid, identity })
    }
}

impl PidRecord {
    /// Of the calling process.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            pid: process::id(),
            identity: Some(ProcessIdentity::of_this_process()?),
        })
    }

    /// Of whoever has this pid now; `None` if nobody has.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let identity = ProcessIdentity::of(pid)?;
        Ok(identity.map(|identity| Self {
            pid,
            identity: Some(identity),
        }))
    }

    /// Writes it, whole and synced.
    ///
    /// # Errors
    ///
    /// [`FileError`], naming the file.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        write_file(path, &self.to_text(path)?)
    }

    /// Whole, but not synced: no payload outlives the machine.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_of_payload(&self, path: &Path) -> Result<(), FileError> {
        write_file_unsynced(path, &self.to_text(path)?)
    }

    fn to_text(&self, path: &Path) -> Result<Vec<u8>, FileError> {
        serde_json::to_vec(self).map_err(|error| FileError::new("write", path, error.into()))
    }

    /// `None` when there is no such file. Reads older records, which hold the pid alone, too.
    ///
    /// # Errors
    ///
    /// [`FileError`], naming the file; of kind [`InvalidData`](io::ErrorKind::InvalidData) when it
    /// is torn or garbage.
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
        let failed = |source| FileError::new("read", path, source);
        match read_file(path, LONGEST_RECORD) {
            Ok(text) => Self::parse(&text).map(Some).ok_or_else(|| {
                failed(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "not a record of a pid",
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?.trim();
        // Parsing alone would take a sign.
        let record = if text.bytes().all(|byte| byte.is_ascii_digit()) {
            Self {
                pid: text.parse().ok()?,
                identity: None,
            }
        } else {
            serde_json::from_str(text).ok()?
        };
        (1..=i32::MAX.cast_unsigned())
            .contains(&record.pid)
            .then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.pid");
        assert_eq!(PidRecord::read(&path).unwrap(), None);
        let record = PidRecord::of_this_process().unwrap();
        record.write(&path).unwrap();
        assert_eq!(PidRecord::read(&path).unwrap(), Some(record));
    }

    #[test]
    fn the_pid_alone_is_read() {
        let record = PidRecord::parse(b" 4711\n").unwrap();
        assert_eq!(
            record,
            PidRecord {
                pid: 4711,
                identity: None
            }
        );
        assert_eq!(PidRecord::parse(b"{\"pid\":4711}").unwrap(), record);
    }

    #[test]
    fn garbage_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            "+5",
            "4294967295",
            "{\"pid\":12",
            "{}",
            "pid",
            "\u{0}",
            r#"{"pid":5,"start_time":"7","boot_id":"b"}"#,
            r#"{"pid":5,"start_time":7}"#,
            r#"{"pid":5,"boot_id":"b"}"#,
            r#"{"pid":5,"start_time":7,"boot_id":null}"#,
            r#"{"pid":5,"start_time":7,"boot_id":"b","pidfd_inode":-1}"#,
        ] {
            assert_eq!(PidRecord::parse(text.as_bytes()), None, "{text:?}");
        }
    }
}
