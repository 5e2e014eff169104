use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use pidfd_spawn::Command;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use ulid::Ulid;
use vmm_protocol::pod::PodDir;
use vmm_protocol::{PidRecord, write_file_unsynced};

use crate::args::Args;
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::unmount::unmount_all;

const SCHEME: &str = "unix://";

/// The file with the [`Owner`] of the pod.
const OWNER: &str = "owner.json";

/// The file with the process that serves the pod, or cleans up after it.
const PROCESS: &str = "process.json";

/// The container for which a pod was started. Its `delete` ends the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
}

impl Owner {
    pub(crate) fn of(args: &Args, bundle: &Bundle) -> Self {
        Self {
            namespace: args.namespace.clone(),
            id: args.id.clone(),
            bundle: bundle.path().to_owned(),
        }
    }
}

/// The directory of a pod. Its path is short, because that of a socket must be: that of a bundle is too long.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Creates the directory of a new pod, with its owner and this process.
    pub(crate) fn create(parent: &Path, owner: &Owner) -> Result<Self, ShimError> {
        let create_dir = |path: &Path| {
            let mut builder = DirBuilder::new();
            let created = builder.recursive(true).mode(0o700).create(path);
            created.map_err(ShimError::file("create", path))
        };
        create_dir(parent)?;
        let _lock = Self::lock(parent)?;
        let path = parent.join(Ulid::generate().to_string());
        create_dir(&path)?;
        let state = Self { path };
        let write = || -> Result<(), ShimError> {
            let process = PidRecord::of_this_process();
            state.set_process(&process.map_err(ShimError::file("read", "/proc/self"))?)?;
            state.set_owner(owner)
        };
        write().inspect_err(|_| {
            let _ = state.remove();
        })?;
        Ok(state)
    }

    /// Waits until no other process creates a pod, or looks for abandoned ones. The lock ends with the value.
    pub(crate) fn lock(parent: &Path) -> Result<File, ShimError> {
        let lock = || -> io::Result<File> {
            let dir = File::open(parent)?;
            flock(&dir, FlockOperation::LockExclusive)?;
            Ok(dir)
        };
        lock().map_err(ShimError::file("lock", parent))
    }

    /// Returns the directory at this path.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the directory whose server has this address.
    pub(crate) fn of_address(address: &str) -> Option<Self> {
        let path = Path::new(address.strip_prefix(SCHEME)?).parent()?;
        Some(Self::new(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The address of the server.
    pub(crate) fn address(&self) -> String {
        format!("{SCHEME}{}", self.socket().display())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("s")
    }

    fn set_owner(&self, owner: &Owner) -> Result<(), ShimError> {
        let path = self.path.join(OWNER);
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(owner)?;
            write_file_unsynced(&path, &text).map_err(io::Error::other)
        };
        write().map_err(ShimError::file("write", &path))
    }

    /// Returns the container whose `delete` ends the pod, if it is recorded.
    pub(crate) fn owner(&self) -> Option<Owner> {
        let text = fs::read(self.path.join(OWNER)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Records the process that serves the pod, or cleans up after it.
    pub(crate) fn set_process(&self, process: &PidRecord) -> Result<(), ShimError> {
        let path = self.path.join(PROCESS);
        let written = process.write(&path).map_err(io::Error::other);
        written.map_err(ShimError::file("write", path))
    }

    /// Starts a process that serves the pod, or cleans up after it, and records it.
    pub(crate) fn spawn(&self, command: &mut Command) -> Result<(), ShimError> {
        let child = command.spawn().map_err(ShimError::Spawn)?;
        // This process is its parent, so its pid is not that of another one.
        let process = PidRecord::of(child.id()).map_err(ShimError::file("read", "/proc"))?;
        match process {
            Some(process) => self.set_process(&process),
            // It has ended.
            None => Ok(()),
        }
    }

    /// Returns the process that serves the pod or cleans up after it, if it is recorded.
    pub(crate) fn process(&self) -> Option<PidRecord> {
        PidRecord::read(&self.path.join(PROCESS)).ok().flatten()
    }

    /// The home of the VMM runtime, whose only box is the guest.
    pub(crate) fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    /// The events that containerd has not acknowledged.
    pub(crate) fn events(&self) -> PathBuf {
        self.path.join("events")
    }

    /// What the guest sees of the host.
    pub(crate) fn pod(&self) -> PodDir {
        PodDir::new(self.path.join("pod"))
    }

    /// The files in it, as the host writes them.
    pub(crate) fn files(&self) -> PodDir {
        PodDir::new(self.path.join("files"))
    }

    /// Removes the mounts in the directory, and all but the events.
    pub(crate) fn remove_all_but_events(&self) -> Result<(), ShimError> {
        unmount_all(&self.path)?;
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&self.path)? {
                let path = entry?.path();
                if path == self.events() {
                    continue;
                }
                if path.is_dir() {
                    fs::remove_dir_all(path)?;
                } else {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        match remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ShimError::file("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes the mounts in the directory, and the directory.
    pub(crate) fn remove(&self) -> Result<(), ShimError> {
        unmount_all(&self.path)?;
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ShimError::file("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}
