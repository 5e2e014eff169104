use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_protocol::{ConsoleOptions, PayloadSpec, Ready};

use crate::{HealthCheckOptions, Probe, RestartPolicy, RuntimeError};

/// The specification of a box. It is saved in the `box.json`, which only the runtime's user can
/// read because it may contain secrets. Its `Debug` form shows no secrets.
///
/// ```
/// use std::time::Duration;
/// use vmm_runtime::BoxSpec;
///
/// let spec = BoxSpec::new(["python3", "-m", "http.server"])
///     .name("web")
///     .env("PYTHONUNBUFFERED", "1")
///     .stop_grace(Duration::from_secs(3));
/// assert_eq!(spec.name.as_deref(), Some("web"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct BoxSpec {
    /// The name: up to 128 letters, digits, `.`, `_` and `-`, beginning with a letter or a digit.
    pub name: Option<String>,
    /// The name of the [`Image`](crate::Image) that the box was created from, if any. Only shown;
    /// the spec is complete without the image. Counts towards the size of the labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The payload and its engine.
    pub payload: PayloadSpec,
    /// Whether the box outlives the runtime. By default it ends with the runtime.
    pub detached: bool,
    /// The grace period of a stop, after which the payload is killed; 10 s by default.
    #[serde(with = "crate::serde_millis")]
    pub stop_grace: Duration,
    /// The health check that runs while the box is running.
    pub health: Option<HealthCheckOptions>,
    /// When the runtime starts the box again after it has ended; never by default.
    #[serde(skip_serializing_if = "RestartPolicy::is_no")]
    pub restart: RestartPolicy,
    /// Whether the runtime removes the box when it has ended, or could not be started. Clients that read its
    /// [output](crate::VmmRuntime::console) have 10 s to read the rest. Excludes a restart policy. By default the box is
    /// kept.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub auto_remove: bool,
    /// Labels for the user's own purposes: up to 1,024, and 1 MiB of keys and values.
    pub labels: BTreeMap<String, String>,
}

const MAX_NAME_LEN: usize = 128;
/// Every response that shows a box contains its labels and its image.
const MAX_LABELS: usize = 1024;
const MAX_LABEL_BYTES: usize = 1 << 20;
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

impl Default for BoxSpec {
    fn default() -> Self {
        Self {
            name: None,
            image: None,
            payload: PayloadSpec::default(),
            detached: false,
            stop_grace: DEFAULT_STOP_GRACE,
            health: None,
            restart: RestartPolicy::No,
            auto_remove: false,
            labels: BTreeMap::new(),
        }
    }
}

impl BoxSpec {
    /// Creates the spec of a box that runs a command on the engine `process`. The first element is
    /// the program.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self::of(PayloadSpec::command(command))
    }

    /// Creates the spec of a box that runs this payload.
    pub fn of(payload: PayloadSpec) -> Self {
        Self {
            payload,
            ..Self::default()
        }
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets [`image`](Self::image).
    #[must_use]
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.image = Some(name.into());
        self
    }

    /// Adds a variable to the payload's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.payload.env.insert(name.into(), value.into());
        self
    }

    /// Sets the working directory of the payload.
    #[must_use]
    pub fn working_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.payload.working_dir = Some(dir.into());
        self
    }

    /// Sets the text that the payload reads from its stdin.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.payload.stdin = Some(text.into());
        self
    }

    /// Sets when the payload counts as ready.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> Self {
        self.payload.ready = ready;
        self
    }

    /// Sets the number of processors that the payload may use.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.payload.cpus = Some(count);
        self
    }

    /// Sets the memory that the payload may use, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.payload.memory_mib = Some(mib);
        self
    }

    /// Sets the number of processes and threads that the payload may have at a time; 4,096 by
    /// default. Enforced where the runtime can create control groups.
    #[must_use]
    pub fn pids(mut self, count: u32) -> Self {
        self.payload.pids = Some(count);
        self
    }

    /// Sets how much of the payload's output is kept.
    #[must_use]
    pub fn console(mut self, options: ConsoleOptions) -> Self {
        self.payload.console = options;
        self
    }

    /// Sets [`detached`](Self::detached).
    #[must_use]
    pub fn detached(mut self, on: bool) -> Self {
        self.detached = on;
        self
    }

    /// Sets [`stop_grace`](Self::stop_grace).
    #[must_use]
    pub fn stop_grace(mut self, grace: Duration) -> Self {
        self.stop_grace = grace;
        self
    }

    /// Sets [`health`](Self::health).
    #[must_use]
    pub fn health(mut self, check: HealthCheckOptions) -> Self {
        self.health = Some(check);
        self
    }

    /// Sets [`restart`](Self::restart).
    #[must_use]
    pub fn restart(mut self, policy: RestartPolicy) -> Self {
        self.restart = policy;
        self
    }

    /// Sets [`auto_remove`](Self::auto_remove).
    #[must_use]
    pub fn auto_remove(mut self, on: bool) -> Self {
        self.auto_remove = on;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Returns whether the health check runs commands. They are not children of the shim, so the
    /// shim cannot kill their descendants.
    pub(crate) fn has_command_probe(&self) -> bool {
        let check = self.health.as_ref();
        check.is_some_and(|check| matches!(check.probe, Probe::Command { .. }))
    }

    /// Checks the name, the size of the labels and the image, and what excludes each other.
    pub(crate) fn check(&self) -> Result<(), RuntimeError> {
        let labels = self.labels.iter();
        let label_bytes: usize = labels.map(|(key, value)| key.len() + value.len()).sum();
        let image_bytes = self.image.as_ref().map_or(0, String::len);
        if self.labels.len() > MAX_LABELS || label_bytes + image_bytes > MAX_LABEL_BYTES {
            return Err(RuntimeError::TooManyLabels {
                count: self.labels.len(),
            });
        }
        if self.auto_remove && !self.restart.is_no() {
            return Err(RuntimeError::RestartOfRemoved {
                policy: self.restart,
            });
        }
        let Some(name) = &self.name else {
            return Ok(());
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.len() <= MAX_NAME_LEN
            && name.chars().all(allowed);
        if valid {
            Ok(())
        } else {
            Err(RuntimeError::InvalidName { name: name.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_pattern() {
        for name in ["a", "web-1", "9.x_Y", &"n".repeat(128)] {
            assert!(BoxSpec::new(["true"]).name(name).check().is_ok(), "{name}");
        }
        for name in ["", "-a", ".a", "a/b", "a b", "ä", "a\n", &"n".repeat(129)] {
            assert!(BoxSpec::new(["true"]).name(name).check().is_err(), "{name}");
        }
    }

    #[test]
    fn labels_and_image_are_bounded_together() {
        let half = "x".repeat(MAX_LABEL_BYTES / 2);
        let spec = BoxSpec::new(["true"]).label("", half.clone());
        assert!(spec.clone().image(half.clone()).check().is_ok());
        assert!(spec.image(half + "x").check().is_err());
    }

    #[test]
    fn a_spec_round_trips_through_json() {
        let spec = BoxSpec::new(["sleep", "1"])
            .name("b")
            .image("web")
            .env("A", "b")
            .cpus(2)
            .memory_mib(512)
            .pids(64)
            .console(ConsoleOptions::default().max_bytes(1 << 20).files(2))
            .detached(true)
            .stop_grace(Duration::from_millis(1500))
            .health(HealthCheckOptions::command(["true"]))
            .label("team", "a");
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<BoxSpec>(&text).unwrap(), spec);
        let handwritten = r#"{"payload":{"command":["true"]}}"#;
        let parsed: BoxSpec = serde_json::from_str(handwritten).unwrap();
        assert_eq!(parsed, BoxSpec::new(["true"]));
    }
}
