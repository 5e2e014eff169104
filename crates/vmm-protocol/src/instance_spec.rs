use std::io::{self, BufRead};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{PayloadSpec, RuntimeProcess};

/// What a shim is told, as one line of JSON on its stdin.
///
/// Unknown fields are ignored, so that an older shim serves a newer runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// The box's id; the payload finds it in `VMM_BOX_ID`.
    pub id: String,
    /// What to run.
    #[serde(default)]
    pub payload: PayloadSpec,
    /// No watchdog: the shim outlives the runtime.
    #[serde(default)]
    pub detached: bool,
    /// How long a payload may take to stop after the watchdog has hung up, in milliseconds; also
    /// how long its start may go on after any order to stop.
    #[serde(default = "default_stop_grace_ms")]
    pub stop_grace_ms: u64,
}

/// A spec that is larger than this is refused; it keeps a broken runtime from filling the memory.
const MAX_BYTES: u64 = 16 << 20;

fn default_stop_grace_ms() -> u64 {
    10_000
}

impl InstanceSpec {
    /// Attached, with 10 s to stop.
    pub fn new(id: impl Into<String>, payload: PayloadSpec) -> Self {
        Self {
            id: id.into(),
            payload,
            detached: false,
            stop_grace_ms: default_stop_grace_ms(),
        }
    }

    /// The wire form, newline included.
    ///
    /// # Errors
    ///
    /// Never with the types as they are.
    pub fn to_line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }

    /// The wire form, newline included, for an attached shim that is also to end when `runtime`
    /// exits.
    ///
    /// # Errors
    ///
    /// Never with the types as they are.
    pub fn to_line_from(&self, runtime: &RuntimeProcess) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(&SpecFrom {
            spec: self,
            runtime,
        })?;
        line.push(b'\n');
        Ok(line)
    }

    /// Returns how long the payload may take to stop.
    pub fn stop_grace(&self) -> Duration {
        Duration::from_millis(self.stop_grace_ms)
    }

    /// Reads one line; also from whom it is, if it says so. The message of a refusal quotes nothing
    /// of it, because it can hold secrets.
    ///
    /// # Errors
    ///
    /// The reason, for the exit record.
    pub fn read(from: impl BufRead) -> Result<(Self, Option<RuntimeProcess>), String> {
        let mut line = Vec::new();
        io::Read::take(from, MAX_BYTES)
            .read_until(b'\n', &mut line)
            .map_err(|error| format!("the spec could not be read: {error}"))?;
        if line.last() != Some(&b'\n') {
            let size = line.len();
            if size as u64 == MAX_BYTES {
                return Err("the spec is larger than 16 MiB".to_owned());
            }
            return Err(format!(
                "the spec broke off after {size} bytes, before its newline"
            ));
        }
        let malformed = |error: serde_json::Error| {
            format!(
                "the spec is malformed: {:?} error at column {}",
                error.classify(),
                error.column()
            )
        };
        let spec = serde_json::from_slice(&line).map_err(malformed)?;
        let Sender { runtime } = serde_json::from_slice(&line).map_err(malformed)?;
        Ok((spec, runtime))
    }
}

/// A spec with its sender, as written.
#[derive(Serialize)]
struct SpecFrom<'a> {
    #[serde(flatten)]
    spec: &'a InstanceSpec,
    runtime: &'a RuntimeProcess,
}

/// The sender alone, as read.
#[derive(Deserialize)]
struct Sender {
    runtime: Option<RuntimeProcess>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_its_wire_form() {
        let spec = InstanceSpec {
            id: "b1".into(),
            payload: PayloadSpec::command(["sh", "-c", "line\nbreak"]),
            detached: true,
            stop_grace_ms: 5,
        };
        let line = spec.to_line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(InstanceSpec::read(&line[..]).unwrap(), (spec, None));
    }

    #[test]
    fn a_spec_names_the_runtime_that_sends_it() {
        let spec = InstanceSpec::new("b1", PayloadSpec::command(["true"]));
        let runtime = RuntimeProcess::this().unwrap();
        let line = spec.to_line_from(&runtime).unwrap();
        assert_eq!(
            InstanceSpec::read(&line[..]).unwrap(),
            (spec, Some(runtime))
        );
    }

    #[test]
    fn unknown_fields_are_ignored_and_missing_ones_have_defaults() {
        let line = b"{\"id\":\"b\",\"payload\":{\"command\":[\"true\"],\"new\":1},\"newer\":[]}\n";
        let (spec, _) = InstanceSpec::read(&line[..]).unwrap();
        assert_eq!(spec.payload, PayloadSpec::command(["true"]));
        assert_eq!(spec.stop_grace(), Duration::from_secs(10));
        assert!(!spec.detached);
    }

    #[test]
    fn a_refusal_quotes_nothing_of_the_spec() {
        let line = b"{\"id\":\"b\",\"detached\":\"hunter2\"}\n";
        let message = InstanceSpec::read(&line[..]).unwrap_err();
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn a_torn_spec_is_refused() {
        let message = InstanceSpec::read(&b"{\"id\":\"b\"}"[..]).unwrap_err();
        assert!(message.contains("broke off after 10 bytes"), "{message}");
    }

    #[test]
    fn too_large_a_spec_is_refused_as_that() {
        let endless = io::BufReader::new(io::repeat(b' '));
        let message = InstanceSpec::read(endless).unwrap_err();
        assert!(message.contains("larger than 16 MiB"), "{message}");
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let mut payload = PayloadSpec::command(["server", "hunter2"]);
        payload.stdin = Some("hunter2".into());
        payload.env.insert("TOKEN".into(), "hunter2".into());
        payload.options.insert("key".into(), "hunter2".into());
        let shown = format!("{payload:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
