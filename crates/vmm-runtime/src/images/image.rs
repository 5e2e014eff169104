use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vmm_protocol::{ConsoleOptions, PayloadSpec, Ready};

use crate::HealthCheckOptions;

/// A template for boxes: the payload and its limits. An image file of the [`ImageTable`] or of an
/// [`ImageStore`](crate::ImageStore) has this form in JSON. Missing fields have their defaults; unknown
/// fields are an error.
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
/// The `Debug` form shows only name and engine, since other fields can hold secrets.
///
/// [`ImageTable`]: crate::ImageTable
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Image {
    /// The name of the image in a file; the file name without `.json` by default.
    pub name: Option<String>,
    /// The engine that runs the payload; `process` by default.
    pub engine: String,
    /// The words before the command.
    pub entrypoint: Vec<String>,
    /// The program and its arguments, or only arguments if there is an entrypoint.
    pub command: Vec<String>,
    /// The environment of the payload.
    pub env: BTreeMap<String, String>,
    /// The working directory of the payload.
    pub working_dir: Option<PathBuf>,
    /// When the payload is ready.
    pub ready: Ready,
    /// The health check of the box.
    pub health: Option<HealthCheckOptions>,
    /// Virtual processors of a box whose creator sets none.
    pub cpus: Option<u32>,
    /// Memory in MiB of a box whose creator sets none.
    pub memory_mib: Option<u32>,
    /// The maximum number of processes and threads of a box; 4,096 by default.
    pub pids: Option<u32>,
    /// How much of the payload's output is kept.
    pub console: ConsoleOptions,
    /// Options that are specific to the engine.
    pub options: Map<String, Value>,
}

impl Image {
    /// The range of [`cpus`](Self::cpus).
    pub const CPUS_RANGE: RangeInclusive<u32> = 1..=32;
    /// The range of [`memory_mib`](Self::memory_mib).
    pub const MEMORY_MIB_RANGE: RangeInclusive<u32> = 128..=1 << 20;
    /// The range of [`pids`](Self::pids). The maximum is that of the kernel, `proc_sys_kernel(5)`.
    pub const PIDS_RANGE: RangeInclusive<u32> = 1..=1 << 22;

    /// Creates an image that runs a command, the program first, with the engine `process`.
    pub fn command<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// Returns the payload of a box that is created from this image. `entrypoint` and `command`
    /// replace those of the image, as with Docker: an entrypoint also drops the image's command.
    ///
    /// The payload has no limits for processors and memory.
    pub fn payload(
        &self,
        entrypoint: Option<Vec<String>>,
        command: Option<Vec<String>>,
    ) -> PayloadSpec {
        let command = match (&entrypoint, command) {
            (_, Some(command)) => command,
            (Some(_), None) => Vec::new(),
            (None, None) => self.command.clone(),
        };
        let mut words = entrypoint.unwrap_or_else(|| self.entrypoint.clone());
        words.extend(command);
        let mut payload = PayloadSpec::command(words);
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

/// An image with what is known about it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The name of the image.
    pub name: String,
    /// The template.
    pub image: Image,
    /// When the image was built, or added to the table.
    pub created_at: Timestamp,
    /// The space on the disk that the files of the image take. `None` for an image without files.
    pub size_bytes: Option<u64>,
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
        for (entrypoint, command, expected) in cases {
            assert_eq!(image.payload(entrypoint, command).command, expected);
        }
    }
}
