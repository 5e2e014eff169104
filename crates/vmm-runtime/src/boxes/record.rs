use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vmm_protocol::{FileError, InstanceSpec, read_file, write_file};

use super::{BoxSpec, Outcome};
use crate::HealthState;

/// How many processes and threads a box may have that does not ask for a number: more than a service
/// needs, and few enough that a fork bomb leaves the host its pids.
const DEFAULT_PIDS: u32 = 4096;

/// More than any spec takes, in bytes. A payload can write to the file.
const LONGEST: u64 = 20 << 20;

/// A box as its `box.json` has it. Whether it runs now is told by its `shim.pid`, not here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BoxRecord {
    pub(crate) id: String,
    pub(crate) created_at: Timestamp,
    pub(crate) spec: BoxSpec,
    /// How the last run ended.
    #[serde(default)]
    pub(crate) last: Option<Outcome>,
    /// Whether what the last run has left is still to be searched for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) cleanup_due: bool,
}

impl BoxRecord {
    pub(crate) fn new(id: String, created_at: Timestamp, spec: BoxSpec) -> Self {
        Self {
            id,
            created_at,
            spec,
            last: None,
            cleanup_due: false,
        }
    }

    /// A box that ended without being asked to has failed its check.
    pub(crate) fn health_when_down(&self) -> Option<HealthState> {
        self.spec.health.as_ref()?;
        let last = self.last.as_ref()?;
        (!last.requested).then_some(HealthState::Unhealthy)
    }

    /// What its shim is told.
    pub(crate) fn instance(&self) -> InstanceSpec {
        let mut instance = InstanceSpec::new(self.id.clone(), self.spec.payload.clone());
        instance.payload.pids.get_or_insert(DEFAULT_PIDS);
        instance.detached = self.spec.detached;
        instance.stop_grace_ms =
            u64::try_from(self.spec.stop_grace.as_millis()).unwrap_or(u64::MAX);
        instance
    }

    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let failed = |source| FileError::new("read", path, source);
        let text = read_file(path, LONGEST).map_err(failed)?;
        // The error's own text may quote a value, and that may be a secret.
        let record: Self = serde_json::from_slice(&text).map_err(|error| {
            let message = format!(
                "malformed: {:?} error at line {} column {}",
                error.classify(),
                error.line(),
                error.column()
            );
            failed(io::Error::new(io::ErrorKind::InvalidData, message))
        })?;
        match record.spec.check() {
            Ok(()) => Ok(record),
            Err(error) => Err(failed(io::Error::new(io::ErrorKind::InvalidData, error))),
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| FileError::new("write", path, error.into()))?;
        if text.len() as u64 > LONGEST {
            let message = format!("the spec takes more than {LONGEST} bytes");
            let error = io::Error::new(io::ErrorKind::InvalidInput, message);
            return Err(FileError::new("write", path, error));
        }
        write_file(path, &text)
    }
}
