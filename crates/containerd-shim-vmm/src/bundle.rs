use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use vmm_protocol::write_file_unsynced;

use crate::error::ShimError;
use crate::oci;
use crate::process::Exit;

/// The directory that containerd has made for a container, and removes.
#[derive(Clone, Debug)]
pub(crate) struct Bundle {
    path: PathBuf,
}

/// How the first process of a container ended, as it is kept for `delete`.
#[derive(Debug, Serialize, Deserialize)]
struct ExitFile {
    code: u32,
    at: jiff::Timestamp,
    pid: u32,
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
        let id = oci::sandbox(spec)?;
        Some(Self::new(self.path.parent()?.join(id)))
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
    pub(crate) fn set_exit(&self, exit: Exit, pid: u32) -> Result<(), ShimError> {
        let Exit { code, at } = exit;
        let text = serde_json::to_vec(&ExitFile { code, at, pid });
        self.write("vmm-exit.json", &text.unwrap_or_default())
    }

    /// Returns how the first process of the container ended, and its pid, if it has ended.
    pub(crate) fn exit(&self) -> Option<(Exit, u32)> {
        let text = fs::read(self.path.join("vmm-exit.json")).ok()?;
        let ExitFile { code, at, pid } = serde_json::from_slice(&text).ok()?;
        Some((Exit { code, at }, pid))
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<(), ShimError> {
        let path = self.path.join(name);
        let written = write_file_unsynced(&path, contents).map_err(io::Error::other);
        written.map_err(ShimError::file("write", path))
    }
}
