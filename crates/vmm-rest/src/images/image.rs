use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};
use vmm_runtime::{ConsoleOptions, HealthCheckOptions, PayloadSpec, Ready};

/// What boxes of one kind have in common, as a file of the image table says in JSON. Fields that
/// are missing get their defaults; one that is unknown is an error.
///
/// ```json
/// {
///   "command": ["python3", "-m", "http.server"],
///   "env": {"PYTHONUNBUFFERED": "1"},
///   "working_dir": "/srv",
///   "memory_mib": 1024
/// }
/// ```
///
/// It can hold secrets, so its `Debug` form shows none.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Image {
    /// What boxes are made from it by; the file's name without `.json` unless said otherwise.
    pub name: Option<String>,
    /// The engine that runs the payload; `process` unless said otherwise.
    pub engine: String,
    /// What comes before the command.
    pub entrypoint: Vec<String>,
    /// The program and its arguments, or after an entrypoint arguments only.
    pub command: Vec<String>,
    /// The payload's environment.
    pub env: BTreeMap<String, String>,
    /// Where the payload starts.
    pub working_dir: Option<PathBuf>,
    /// When the payload counts as running.
    pub ready: Ready,
    /// How to tell whether it works.
    pub health: Option<HealthCheckOptions>,
    /// Virtual processors, unless the request says otherwise.
    pub cpus: Option<u32>,
    /// Memory in MiB, unless the request says otherwise.
    pub memory_mib: Option<u32>,
    /// Processes and threads that a box may have at a time; 4,096 unless said otherwise. Requests
    /// cannot change it.
    pub pids: Option<u32>,
    /// How much of what the payload prints is kept.
    pub console: ConsoleOptions,
    /// What only the engine understands.
    pub options: Map<String, Value>,
}

impl Image {
    /// A command, its program first, for the engine `process`.
    pub fn command<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// As Docker combines them: another entrypoint drops the image's command.
    pub(crate) fn payload(
        &self,
        entrypoint: Option<Vec<String>>,
        command: Option<Vec<String>>,
    ) -> PayloadSpec {
        let command = match (&entrypoint, command) {
            (_, Some(command)) => command,
            (Some(_), None) => Vec::new(),
            (None, None) => self.command.clone(),
        };
        let mut whole = entrypoint.unwrap_or_else(|| self.entrypoint.clone());
        whole.extend(command);
        let mut payload = PayloadSpec::command(whole);
        payload.engine.clone_from(&self.engine);
        payload.env.clone_from(&self.env);
        payload.working_dir.clone_from(&self.working_dir);
        payload.ready = self.ready;
        payload.pids = self.pids;
        payload.console = self.console;
        payload.options.clone_from(&self.options);
        payload
    }
}

impl Default for Image {
    fn default() -> Self {
        Self {
            name: None,
            engine: PayloadSpec::default().engine,
            entrypoint: Vec::new(),
            command: Vec::new(),
            env: BTreeMap::new(),
            working_dir: None,
            ready: Ready::default(),
            health: None,
            cpus: None,
            memory_mib: None,
            pids: None,
            console: ConsoleOptions::default(),
            options: Map::new(),
        }
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("name", &self.name)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entrypoint_and_command_combine_as_with_docker() {
        let image = Image {
            entrypoint: vec!["sh".into()],
            ..Image::command(["-c", "true"])
        };
        type Words = Option<Vec<String>>;
        let words =
            |list: &[&str]| -> Words { Some(list.iter().map(|word| (*word).to_owned()).collect()) };
        let cases: [(Words, Words, &[&str]); 4] = [
            (None, None, &["sh", "-c", "true"]),
            (None, words(&["x"]), &["sh", "x"]),
            (words(&["env"]), None, &["env"]),
            (words(&["env"]), words(&["-i"]), &["env", "-i"]),
        ];
        for (entrypoint, command, whole) in cases {
            assert_eq!(image.payload(entrypoint, command).command, whole);
        }
    }
}
