use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmm_protocol::{PidRecord, write_file_unsynced};

use crate::error::ShimError;
use crate::oci;
use crate::process::Exit;

/// The files that this program adds to a bundle.
const EXIT: &str = "vmm-exit.json";
const CONTAINERD: &str = "vmm-containerd.json";

/// The directory that containerd has made for a container, and removes.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    path: PathBuf,
}

/// How the first process of a container ended, as it is kept for `delete`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    #[serde(flatten)]
    pub(crate) exit: Exit,
    pub(crate) pid: u32,
    /// Whether the event of the exit was added to a queue.
    pub(crate) is_published: bool,
}

impl Bundle {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The root file system of a container whose root is not mounted by containerd.
    pub(crate) fn root(&self, spec: &Spec) -> PathBuf {
        let root = spec.root().as_ref();
        let path = root.map_or(Path::new("rootfs"), |root| root.path());
        self.path.join(path)
    }

    /// The FIFO from which containerd reads the log of the server.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn spec(&self) -> Result<Spec, ShimError> {
        Spec::load(self.path.join("config.json"))
            .map_err(|error| ShimError::Spec(error.to_string()))
    }

    /// Returns the bundle of the sandbox that the container belongs to, unless it is a sandbox itself.
    pub(crate) fn sandbox(&self, spec: &Spec) -> Option<Self> {
        self.sibling(oci::sandbox(spec)?)
    }

    /// Reads the address of the server; `None` if none was started.
    pub(crate) fn address(&self) -> Result<Option<String>, ShimError> {
        let path = self.path.join("address");
        match fs::read_to_string(&path) {
            Ok(address) => Ok(Some(address)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ShimError::file("read", path)(error)),
        }
    }

    pub(crate) fn set_address(&self, address: &str) -> Result<(), ShimError> {
        self.write("address", address.as_bytes())
    }

    /// Keeps how the first process of the container ended.
    pub(crate) fn set_exit(&self, record: &ExitRecord) -> Result<(), ShimError> {
        self.write_json(EXIT, record)
    }

    /// Returns how the first process of the container ended, if it has ended.
    pub(crate) fn exit(&self) -> Option<ExitRecord> {
        self.read_json(EXIT)
    }

    /// Records the containerd that knows the container as a task.
    pub(crate) fn set_containerd(&self, process: &PidRecord) -> Result<(), ShimError> {
        self.write_json(CONTAINERD, process)
    }

    /// Returns the containerd that knows the container as a task. It publishes the exit itself after `delete`.
    pub(crate) fn containerd(&self) -> Option<PidRecord> {
        self.read_json(CONTAINERD)
    }

    /// Returns the bundle of another container of the same namespace.
    pub(crate) fn sibling(&self, id: &str) -> Option<Self> {
        Some(Self::new(self.path.parent()?.join(id)))
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let text = fs::read(self.path.join(name)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), ShimError> {
        let text = serde_json::to_vec(value).map_err(io::Error::other);
        let text = text.map_err(ShimError::file("write", self.path.join(name)))?;
        self.write(name, &text)
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<(), ShimError> {
        let path = self.path.join(name);
        let written = write_file_unsynced(&path, contents).map_err(io::Error::other);
        written.map_err(ShimError::file("write", path))
    }
}
