use std::io::{self, BufRead};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{HostPolicy, PayloadSpec, RuntimeProcess, to_line};

/// The instructions that the runtime sends to a shim, as one line of JSON on its stdin.
///
/// A shim ignores unknown fields, so that it also works with a newer runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// The id of the box. The payload finds it in the environment variable `VMM_BOX_ID`.
    pub id: String,
    /// The payload to run.
    #[serde(default)]
    pub payload: PayloadSpec,
    /// Whether the shim has no watchdog, and so outlives the runtime.
    #[serde(default)]
    pub detached: bool,
    /// The grace period, in milliseconds: how long the payload may take to stop, and how long a start
    /// may continue after that request. A [request](crate::stop_signal) can have another one.
    #[serde(default = "default_stop_grace_ms")]
    pub stop_grace_ms: u64,
    /// What the operator of the host decides for all payloads.
    #[serde(default, skip_serializing_if = "HostPolicy::is_default")]
    pub policy: HostPolicy,
    /// The user and the group of the VMM of a guest, which no other box has. Without it, the VMM has
    /// those of the shim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// A directory in which engines keep what they know of the host. All boxes share it; it may not
    /// exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
}

/// The maximum size of a spec. It protects the shim from a broken runtime.
const MAX_SPEC_BYTES: u64 = 16 << 20;

fn default_stop_grace_ms() -> u64 {
    10_000
}

impl InstanceSpec {
    /// Creates the spec of an attached shim with a grace period of 10 seconds.
    pub fn new(id: impl Into<String>, payload: PayloadSpec) -> Self {
        Self {
            id: id.into(),
            payload,
            detached: false,
            stop_grace_ms: default_stop_grace_ms(),
            policy: HostPolicy::default(),
            uid: None,
            cache_dir: None,
        }
    }

    /// Serializes the spec, including the newline at the end.
    ///
    /// # Errors
    ///
    /// Serialization of the current fields cannot fail.
    pub fn to_line(&self) -> serde_json::Result<Vec<u8>> {
        to_line(self)
    }

    /// Serializes the spec, including the newline at the end, together with the runtime that sends
    /// it. An attached shim also ends when the process of this runtime exits.
    ///
    /// # Errors
    ///
    /// Serialization of the current fields cannot fail.
    pub fn to_line_from(&self, runtime: &RuntimeProcess) -> serde_json::Result<Vec<u8>> {
        to_line(&SpecWithSender {
            spec: self,
            runtime,
        })
    }

    /// Returns the grace period.
    pub fn stop_grace(&self) -> Duration {
        Duration::from_millis(self.stop_grace_ms)
    }

    /// Reads a spec, and the runtime that sent it if the line names one.
    ///
    /// # Errors
    ///
    /// A message for the exit record. It quotes nothing from the spec, which can contain secrets.
    pub fn read(input: impl BufRead) -> Result<(Self, Option<RuntimeProcess>), String> {
        let mut line = Vec::new();
        io::Read::take(input, MAX_SPEC_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| format!("cannot read the spec: {error}"))?;
        if line.last() != Some(&b'\n') {
            let size = line.len();
            if size as u64 == MAX_SPEC_BYTES {
                return Err("the spec is larger than 16 MiB".to_owned());
            }
            return Err(format!(
                "the spec is incomplete: it ended after {size} bytes, without a newline"
            ));
        }
        let invalid = |error: serde_json::Error| {
            format!(
                "the spec is invalid: {:?} error at column {}",
                error.classify(),
                error.column()
            )
        };
        let spec = serde_json::from_slice(&line).map_err(invalid)?;
        let Sender { runtime } = serde_json::from_slice(&line).map_err(invalid)?;
        Ok((spec, runtime))
    }
}

/// A spec with its sender, for serialization.
#[derive(Serialize)]
struct SpecWithSender<'a> {
    #[serde(flatten)]
    spec: &'a InstanceSpec,
    runtime: &'a RuntimeProcess,
}

/// The sender of a spec, for deserialization.
#[derive(Deserialize)]
struct Sender {
    runtime: Option<RuntimeProcess>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConfinementRule;

    #[test]
    fn a_spec_survives_serialization() {
        let payload = PayloadSpec::command(["sh", "-c", "line\nbreak"]);
        let spec = InstanceSpec {
            detached: true,
            stop_grace_ms: 5,
            policy: HostPolicy::default()
                .disable(ConfinementRule::Landlock)
                .allow_arguments(true),
            uid: Some(100),
            cache_dir: Some("/cache".into()),
            ..InstanceSpec::new("b1", payload)
        };
        let line = spec.to_line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(InstanceSpec::read(&line[..]).unwrap(), (spec, None));
    }

    #[test]
    fn a_serialized_spec_names_its_sender() {
        let spec = InstanceSpec::new("b1", PayloadSpec::command(["true"]));
        let runtime = RuntimeProcess::this().unwrap();
        let line = spec.to_line_from(&runtime).unwrap();
        assert_eq!(
            InstanceSpec::read(&line[..]).unwrap(),
            (spec, Some(runtime))
        );
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_fields_have_defaults() {
        let line = b"{\"id\":\"b\",\"payload\":{\"command\":[\"true\"],\"new\":1},\"newer\":[]}\n";
        let (spec, _) = InstanceSpec::read(&line[..]).unwrap();
        assert_eq!(spec.payload, PayloadSpec::command(["true"]));
        assert_eq!(spec.stop_grace(), Duration::from_secs(10));
        assert!(!spec.detached);
    }

    #[test]
    fn an_error_message_quotes_nothing_from_the_spec() {
        let line = b"{\"id\":\"b\",\"detached\":\"hunter2\"}\n";
        let message = InstanceSpec::read(&line[..]).unwrap_err();
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn an_incomplete_spec_is_rejected() {
        let message = InstanceSpec::read(&b"{\"id\":\"b\"}"[..]).unwrap_err();
        assert!(message.contains("ended after 10 bytes"), "{message}");
    }

    #[test]
    fn an_oversized_spec_is_rejected() {
        let endless = io::BufReader::new(io::repeat(b' '));
        let message = InstanceSpec::read(endless).unwrap_err();
        assert!(message.contains("larger than 16 MiB"), "{message}");
    }

    #[test]
    fn debug_output_contains_no_secret() {
        let mut payload = PayloadSpec::command(["server", "hunter2"]);
        payload.stdin = Some("hunter2".into());
        payload.env.insert("TOKEN".into(), "hunter2".into());
        payload.options.insert("key".into(), "hunter2".into());
        let shown = format!("{payload:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
