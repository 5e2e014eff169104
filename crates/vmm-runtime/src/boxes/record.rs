use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vmm_protocol::{BoxDir, FileError, InstanceSpec, read_file, truncate_text, write_file};

use super::{BoxId, BoxSpec, Outcome};
use crate::HealthState;
use crate::restart::RestartState;

/// The default limit of processes and threads: more than a service needs, and few enough that a
/// fork bomb cannot use up the pids of the host.
const DEFAULT_PIDS: u32 = 4096;

/// The label that held the image before [`BoxSpec::image`] existed.
const OLD_IMAGE_LABEL: &str = "vmm-rest/image";

/// The largest `box.json`; more than any spec needs. A payload can write to the file.
const MAX_RECORD_BYTES: u64 = 20 << 20;

/// The contents of a `box.json`. Whether the box is running follows from its `shim.pid`, not from
/// here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BoxRecord {
    pub(crate) id: BoxId,
    pub(crate) created_at: Timestamp,
    /// Shared with every [`BoxInfo`](crate::BoxInfo) of the box.
    #[serde(
        serialize_with = "serialize_shared",
        deserialize_with = "deserialize_shared"
    )]
    pub(crate) spec: Arc<BoxSpec>,
    /// The user of the VMM of a guest, if the box has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    /// How the last run ended; `None` before the first run.
    #[serde(default)]
    pub(crate) last: Option<Outcome>,
    /// Whether a cleanup after the last run is pending.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) cleanup_due: bool,
    /// The boot of the host in which the current run was launched. Saved only if a restart or a removal follows
    /// its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) launched_in: Option<String>,
    /// What decides whether the box is restarted.
    #[serde(default, skip_serializing_if = "RestartState::is_default")]
    pub(crate) restart: RestartState,
}

fn serialize_shared<S: Serializer>(spec: &BoxSpec, to: S) -> Result<S::Ok, S::Error> {
    spec.serialize(to)
}

fn deserialize_shared<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<BoxSpec>, D::Error> {
    BoxSpec::deserialize(from).map(Arc::new)
}

impl BoxRecord {
    /// Creates the record of a box that was never started.
    pub(crate) fn new(id: BoxId, created_at: Timestamp, spec: BoxSpec) -> Self {
        Self {
            id,
            created_at,
            spec: Arc::new(spec),
            uid: None,
            last: None,
            cleanup_due: false,
            launched_in: None,
            restart: RestartState::default(),
        }
    }

    /// Returns the health state after an exit: unhealthy if the exit was not requested.
    pub(crate) fn health_after_exit(&self) -> Option<HealthState> {
        self.spec.health.as_ref()?;
        let last = self.last.as_ref()?;
        (!last.requested).then_some(HealthState::Unhealthy)
    }

    /// Returns the spec that the runtime sends to the shim.
    pub(crate) fn instance_spec(&self) -> InstanceSpec {
        let mut instance = InstanceSpec::new(self.id.as_str(), self.spec.payload.clone());
        instance.payload.pids.get_or_insert(DEFAULT_PIDS);
        instance.uid = self.uid;
        instance.detached = self.spec.detached;
        instance.stop_grace_ms =
            u64::try_from(self.spec.stop_grace.as_millis()).unwrap_or(u64::MAX);
        instance
    }

    /// Reads a `box.json`.
    pub(crate) fn read(dir: &BoxDir) -> Result<Self, FileError> {
        let path = dir.spec_path();
        let to_error = |source| FileError::new("read", &path, source);
        let text = read_file(&path, MAX_RECORD_BYTES).map_err(to_error)?;
        Self::parse(&text).map_err(to_error)
    }

    pub(crate) fn parse(text: &[u8]) -> io::Result<Self> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        // The error text of serde may quote a value, which may be a secret.
        let mut record: Self = serde_json::from_slice(text).map_err(|error| {
            invalid(format!(
                "malformed: {:?} error at line {} column {}",
                error.classify(),
                error.line(),
                error.column()
            ))
        })?;
        if record.spec.labels.contains_key(OLD_IMAGE_LABEL) {
            let spec = Arc::make_mut(&mut record.spec);
            let image = spec.labels.remove(OLD_IMAGE_LABEL);
            spec.image = spec.image.take().or(image);
        }
        record.spec.check().map_err(|error| {
            // It quotes the name.
            let mut message = error.to_string();
            truncate_text(&mut message);
            invalid(message)
        })?;
        Ok(record)
    }

    /// Writes the `box.json` atomically.
    pub(crate) fn write(&self, dir: &BoxDir) -> Result<(), FileError> {
        let path = dir.spec_path();
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| FileError::new("write", &path, error.into()))?;
        if text.len() as u64 > MAX_RECORD_BYTES {
            let message = format!("the spec takes more than {MAX_RECORD_BYTES} bytes");
            let error = io::Error::new(io::ErrorKind::InvalidInput, message);
            return Err(FileError::new("write", path, error));
        }
        write_file(&path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_image_label_is_read_as_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let dir = BoxDir::new(dir.path());
        let spec = BoxSpec::new(["true"])
            .label(OLD_IMAGE_LABEL, "web")
            .label("team", "a");
        BoxRecord::new("b".parse().unwrap(), Timestamp::now(), spec)
            .write(&dir)
            .unwrap();
        let read = BoxRecord::read(&dir).unwrap().spec;
        assert_eq!(
            *read,
            BoxSpec::new(["true"]).image("web").label("team", "a")
        );
    }
}
