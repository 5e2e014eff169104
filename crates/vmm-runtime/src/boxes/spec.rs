use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_protocol::{ConsoleOptions, PayloadSpec, Ready};

use crate::{HealthCheckOptions, RuntimeError};

/// What a box is to be. Kept in the box's `box.json`, readable by the runtime's user only, because
/// it can hold secrets; its `Debug` form shows none.
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
    /// Letters, digits, `.`, `_` and `-`, beginning with a letter or digit; at most 128 of them.
    pub name: Option<String>,
    /// What it runs, and on which engine.
    pub payload: PayloadSpec,
    /// Whether it outlives the runtime. By default it ends with it.
    pub detached: bool,
    /// How long it may take to stop before it is killed; 10 s by default.
    #[serde(with = "crate::serde_millis")]
    pub stop_grace: Duration,
    /// How to tell whether it works, while it runs.
    pub health: Option<HealthCheckOptions>,
    /// The user's: at most 1,024, and 1 MiB of keys and values.
    pub labels: BTreeMap<String, String>,
}

const MAX_NAME: usize = 128;
/// Labels are part of every response that shows the box.
const MAX_LABELS: usize = 1024;
const MAX_LABEL_BYTES: usize = 1 << 20;
const STOP_GRACE: Duration = Duration::from_secs(10);

impl Default for BoxSpec {
    fn default() -> Self {
        Self {
            name: None,
            payload: PayloadSpec::default(),
            detached: false,
            stop_grace: STOP_GRACE,
            health: None,
            labels: BTreeMap::new(),
        }
    }
}

impl BoxSpec {
    /// A box that runs a command, its program first, on the engine `process`.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self::of(PayloadSpec::command(command))
    }

    /// A box that runs this payload.
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

    /// Adds a variable to the payload's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.payload.env.insert(name.into(), value.into());
        self
    }

    /// Sets where the payload starts.
    #[must_use]
    pub fn working_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.payload.working_dir = Some(dir.into());
        self
    }

    /// Sets what the payload reads on its stdin.
    #[must_use]
    pub fn stdin(mut self, text: impl Into<String>) -> Self {
        self.payload.stdin = Some(text.into());
        self
    }

    /// Sets when the payload counts as running.
    #[must_use]
    pub fn ready(mut self, ready: Ready) -> Self {
        self.payload.ready = ready;
        self
    }

    /// Sets how many processors the payload may use.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.payload.cpus = Some(count);
        self
    }

    /// Sets how much memory the payload may use, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.payload.memory_mib = Some(mib);
        self
    }

    /// Sets how many processes and threads the payload may have at a time, where the runtime can
    /// make control groups; 4,096 by default.
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

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    pub(crate) fn check(&self) -> Result<(), RuntimeError> {
        let label_bytes = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len());
        if self.labels.len() > MAX_LABELS || label_bytes.sum::<usize>() > MAX_LABEL_BYTES {
            return Err(RuntimeError::TooManyLabels {
                count: self.labels.len(),
            });
        }
        let Some(name) = &self.name else {
            return Ok(());
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.len() <= MAX_NAME
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
    fn a_spec_survives_the_disk() {
        let spec = BoxSpec::new(["sleep", "1"])
            .name("b")
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
        let from_hand = r#"{"payload":{"command":["true"]}}"#;
        let parsed: BoxSpec = serde_json::from_str(from_hand).unwrap();
        assert_eq!(parsed, BoxSpec::new(["true"]));
    }
}
