use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ConsoleOptions;

/// The `PATH` of a command, on the host and in a guest, unless its spec has another one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The payload of a box, and the engine that runs it.
///
/// The fields `env`, `stdin` and `options` can contain secrets. The `Debug` output omits them.
/// Deserialization uses the default for a missing field, and ignores an unknown field.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PayloadSpec {
    /// The name of the engine; `process` by default.
    pub engine: String,
    /// The program and its arguments. Every user of the host can see them while the payload runs,
    /// unless it runs in a guest.
    pub command: Vec<String>,
    /// The environment variables of the payload, in addition to [`DEFAULT_PATH`]. The payload
    /// inherits none from the runtime.
    pub env: BTreeMap<String, String>,
    /// The working directory of the payload; `/` by default.
    pub working_dir: Option<PathBuf>,
    /// The input that the payload reads from its stdin. Pass secrets here: the text does not appear
    /// in arguments, environment variables or logs.
    pub stdin: Option<String>,
    /// The condition for the payload to count as running.
    pub ready: Ready,
    /// The number of CPUs that the payload may use; unlimited by default.
    pub cpus: Option<u32>,
    /// The memory limit in MiB; unlimited by default.
    pub memory_mib: Option<u32>,
    /// The maximum number of processes and threads at a time; unlimited by default.
    pub pids: Option<u32>,
    /// The limits for the output that the box keeps.
    pub console: ConsoleOptions,
    /// Options that are specific to the engine.
    pub options: Map<String, Value>,
}

/// The condition for a payload to count as running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// The program has been executed.
    #[default]
    Started,
    /// The payload has sent `READY=1` to the datagram socket in `NOTIFY_SOCKET`, as systemd
    /// services do (`sd_notify(3)`).
    Notified,
}

impl PayloadSpec {
    /// Creates the spec of a command for the engine `process`.
    pub fn command<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Returns whether the engine `process` runs the payload.
    pub fn is_process(&self) -> bool {
        self.engine == PROCESS_ENGINE
    }

    /// Checks the payload for what no engine can run.
    ///
    /// # Errors
    ///
    /// [`PayloadSpecError`] with the first field that is not valid.
    pub fn check(&self) -> Result<(), PayloadSpecError> {
        let has_nul = |text: &str| text.contains('\0');
        match self.command.first() {
            None if self.is_process() => {
                return Err(PayloadSpecError::Command("the command is empty"));
            }
            Some(program) if program.is_empty() => {
                return Err(PayloadSpecError::Command("the program name is empty"));
            }
            _ => {}
        }
        if self.command.iter().any(|word| has_nul(word)) {
            return Err(PayloadSpecError::Command("an argument has a NUL character"));
        }
        let is_invalid = |(name, value): &(&String, &String)| {
            name.is_empty() || name.contains('=') || has_nul(name) || has_nul(value)
        };
        if let Some((name, _)) = self.env.iter().find(is_invalid) {
            return Err(PayloadSpecError::Env(name.clone()));
        }
        if !self.console.is_valid() {
            return Err(PayloadSpecError::Console);
        }
        match &self.working_dir {
            Some(dir) if !dir.is_absolute() || has_nul(&dir.to_string_lossy()) => {
                Err(PayloadSpecError::WorkingDir)
            }
            _ => Ok(()),
        }
    }
}

/// The engine whose payload is a command.
const PROCESS_ENGINE: &str = "process";

/// A field of a [`PayloadSpec`] that no engine can run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadSpecError {
    /// The command is not valid, for this reason.
    #[error("command: {0}")]
    Command(&'static str),
    /// A variable of the environment cannot be set. Holds its name.
    #[error(
        "env: {0:?} cannot be set; a name must not be empty or contain '=', and neither a name nor \
         a value may contain a NUL character"
    )]
    Env(String),
    /// The limits for the output are too small.
    #[error("console: max_bytes must be at least 4096, and files at least 1")]
    Console,
    /// The working directory cannot be entered.
    #[error("working_dir must be an absolute path without NUL characters")]
    WorkingDir,
}

impl Default for PayloadSpec {
    fn default() -> Self {
        Self {
            engine: PROCESS_ENGINE.to_owned(),
            command: Vec::new(),
            env: BTreeMap::new(),
            working_dir: None,
            stdin: None,
            ready: Ready::default(),
            cpus: None,
            memory_mib: None,
            pids: None,
            console: ConsoleOptions::default(),
            options: Map::new(),
        }
    }
}

impl fmt::Debug for PayloadSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PayloadSpec")
            .field("engine", &self.engine)
            .field("program", &self.command.first())
            .field("working_dir", &self.working_dir)
            .field("ready", &self.ready)
            .field("cpus", &self.cpus)
            .field("memory_mib", &self.memory_mib)
            .field("pids", &self.pids)
            .field("console", &self.console)
            .finish_non_exhaustive()
    }
}
