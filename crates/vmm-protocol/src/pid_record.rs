use std::io;
use std::path::Path;
use std::process;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::files::{read_record, record_to_json, write_file_unsynced};
use crate::{FileError, ProcessIdentity};

/// The pid and identity of a process, as stored in the files `shim.pid` and `payload.pid`.
///
/// Use [`lookup`](Self::lookup) before you signal or show a recorded pid: the process may have
/// exited, and the kernel may have given its pid to another process.
///
/// ```
/// use vmm_protocol::{PidLookup, PidRecord};
///
/// let record = PidRecord::of_this_process()?;
/// assert!(matches!(record.lookup()?, PidLookup::Alive(_)));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRecord")]
pub struct PidRecord {
    /// The pid, in the pid namespace of the runtime.
    pub pid: u32,
    /// The identity of the process; `None` in an older record, which holds only the pid.
    #[serde(flatten)]
    pub identity: Option<ProcessIdentity>,
}

/// The result of [`PidRecord::lookup`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PidLookup {
    /// The recorded process is alive. Contains its current identity.
    Alive(ProcessIdentity),
    /// A process with the recorded pid is alive, but the record has no identity to compare it with.
    /// Contains the current identity of that process.
    Unverified(ProcessIdentity),
    /// The recorded process has exited, and another process has its pid.
    Reused,
    /// No process has the recorded pid, or the process that has it is a zombie.
    NotFound,
}

/// The fields of a record as stored. A flattened `Option` would read a damaged identity as `None`.
#[derive(Deserialize)]
struct RawRecord {
    pid: u32,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl TryFrom<RawRecord> for PidRecord {
    type Error = serde_json::Error;

    fn try_from(RawRecord { pid, rest }: RawRecord) -> serde_json::Result<Self> {
        let has_identity = ["start_time", "boot_id", "pidfd_inode"]
            .iter()
            .any(|field| rest.contains_key(*field));
        let identity = if has_identity {
            Some(serde_json::from_value(Value::Object(rest))?)
        } else {
            None
        };
        Ok(Self { pid, identity })
    }
}

impl PidRecord {
    /// Returns the record of the calling process.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or no file descriptor is available.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            pid: process::id(),
            identity: Some(ProcessIdentity::of_this_process()?),
        })
    }

    /// Returns the record of the process that currently has this pid. Returns `None` if no process
    /// has it, or if the process is a zombie.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or no file descriptor is available.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let identity = ProcessIdentity::of(pid)?;
        Ok(identity.map(|identity| Self {
            pid,
            identity: Some(identity),
        }))
    }

    /// Looks up the recorded process: is it still alive, and is it the same process?
    ///
    /// The result can be outdated as soon as the call returns. To signal a process safely, open a
    /// pidfd first, and signal through the pidfd if the lookup then returns
    /// [`Alive`](PidLookup::Alive).
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read, or no file descriptor is available. Nothing is known about the
    /// process then.
    pub fn lookup(&self) -> io::Result<PidLookup> {
        Ok(match (ProcessIdentity::of(self.pid)?, &self.identity) {
            (None, _) => PidLookup::NotFound,
            (Some(current), None) => PidLookup::Unverified(current),
            (Some(current), Some(recorded)) if current.is_same(recorded) => {
                PidLookup::Alive(current)
            }
            (Some(_), Some(_)) => PidLookup::Reused,
        })
    }

    /// Writes the record atomically, without a sync to disk: no process outlives a power cut.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        write_file_unsynced(path, &record_to_json(path, self)?)
    }

    /// Reads a record. Returns `None` if the file does not exist, or is empty or full of NUL bytes, as
    /// a power cut leaves a file that was not synced. Accepts older records, which hold only the pid.
    ///
    /// # Errors
    ///
    /// [`FileError`] with the path of the file. Its source has the kind
    /// [`InvalidData`](io::ErrorKind::InvalidData) if the content is not a complete record.
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
        let record = read_record(path, |text| {
            if text.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let not_a_record =
                || io::Error::new(io::ErrorKind::InvalidData, "it is not a pid record");
            Self::parse(text).map(Some).ok_or_else(not_a_record)
        })?;
        Ok(record.flatten())
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?.trim();
        // `u32::from_str` alone would accept a plus sign.
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
    fn a_written_record_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.pid");
        assert_eq!(PidRecord::read(&path).unwrap(), None);
        let record = PidRecord::of_this_process().unwrap();
        record.write(&path).unwrap();
        assert_eq!(PidRecord::read(&path).unwrap(), Some(record));
    }

    #[test]
    fn what_a_power_cut_leaves_of_a_record_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shim.pid");
        for rest in [&b""[..], &[0; 97]] {
            std::fs::write(&path, rest).unwrap();
            assert_eq!(PidRecord::read(&path).unwrap(), None);
        }
        std::fs::write(&path, "{\"pid\":12").unwrap();
        assert!(PidRecord::read(&path).is_err());
    }

    #[test]
    fn an_older_record_holds_only_the_pid() {
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
    fn an_invalid_record_is_rejected() {
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

    #[test]
    fn lookup_finds_a_live_process_by_its_identity() {
        let record = PidRecord::of_this_process().unwrap();
        let identity = record.identity.clone().unwrap();
        assert_eq!(record.lookup().unwrap(), PidLookup::Alive(identity.clone()));
        let older = PidRecord {
            identity: None,
            ..record
        };
        assert_eq!(older.lookup().unwrap(), PidLookup::Unverified(identity));
    }

    #[test]
    fn lookup_detects_a_reused_pid() {
        let mut earlier = PidRecord::of_this_process().unwrap();
        let identity = earlier.identity.as_mut().unwrap();
        identity.start_time += 1;
        identity.pidfd_inode = identity.pidfd_inode.map(|inode| inode + 1);
        assert_eq!(earlier.lookup().unwrap(), PidLookup::Reused);
    }

    #[test]
    fn lookup_does_not_find_a_zombie_or_a_reaped_process() {
        let mut child = process::Command::new("sleep").arg("1000").spawn().unwrap();
        let record = PidRecord::of(child.id()).unwrap().unwrap();
        assert!(matches!(record.lookup().unwrap(), PidLookup::Alive(_)));
        child.kill().unwrap();
        while record.lookup().unwrap() != PidLookup::NotFound {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(record.lookup().unwrap(), PidLookup::NotFound);
    }

    #[test]
    fn lookup_does_not_find_an_invalid_pid() {
        for pid in [0, u32::MAX] {
            let record = PidRecord {
                pid,
                identity: None,
            };
            assert_eq!(record.lookup().unwrap(), PidLookup::NotFound);
        }
    }
}
