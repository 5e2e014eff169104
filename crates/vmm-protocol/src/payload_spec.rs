use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ConsoleOptions;

/// What a box runs, and on which engine.
///
/// It can hold secrets (in `env`, `stdin` and `options`), so its `Debug` form shows none of them.
/// Fields that are missing get their defaults; unknown fields are ignored.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PayloadSpec {
    /// The name of the engine; `process` unless said otherwise.
    pub engine: String,
    /// The program and its arguments. Visible to every user of the host while it runs.
    pub command: Vec<String>,
    /// The environment of the payload, added to a `PATH`. Nothing is inherited from the runtime.
    pub env: BTreeMap<String, String>,
    /// Where the payload starts; `/` unless said otherwise.
    pub working_dir: Option<PathBuf>,
    /// What the payload reads on its stdin. The place for a secret: it appears in no argument, no
    /// environment and no log.
    pub stdin: Option<String>,
    /// When the payload counts as running.
    pub ready: Ready,
    /// How many processors it may use; all of them unless said otherwise.
    pub cpus: Option<u32>,
    /// How much memory it may use, in MiB; as much as there is unless said otherwise.
    pub memory_mib: Option<u32>,
    /// How many processes and threads it may have at a time; as many as the host unless said
    /// otherwise.
    pub pids: Option<u32>,
    /// How much of what it prints is kept.
    pub console: ConsoleOptions,
    /// What only one engine understands.
    pub options: Map<String, Value>,
}

/// When a payload counts as running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// As soon as its program is executed.
    #[default]
    Started,
    /// When it says so: it sends `READY=1` to the datagram socket in `NOTIFY_SOCKET`, as services
    /// of systemd do (`sd_notify(3)`).
    Notified,
}

impl PayloadSpec {
    /// A command for the engine `process`.
    pub fn command<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}

impl Default for PayloadSpec {
    fn default() -> Self {
        Self {
            engine: "process".to_owned(),
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
