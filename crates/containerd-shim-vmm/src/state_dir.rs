use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use pidfd_spawn::Command;
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ulid::Ulid;
use vmm_protocol::pod::PodDir;
use vmm_protocol::{PidRecord, write_file_unsynced};

use crate::args::Args;
use crate::bundle::{Bundle, ExitRecord};
use crate::error::ShimError;
use crate::recorded_process::has_ended;
use crate::unmount::unmount_all;

const SCHEME: &str = "unix://";

/// The file with the [`Owner`] of the pod.
const OWNER: &str = "owner.json";

/// The file with the exit of the owner that an event will report.
const EXIT: &str = "exit.json";

/// A process that works on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worker {
    /// It serves the pod, or is starting the server.
    Server,
    /// It continues a `delete`.
    Cleanup,
}

impl Worker {
    const ALL: [Self; 2] = [Self::Server, Self::Cleanup];

    /// The file with the process.
    fn file(self) -> &'static str {
        match self {
            Self::Server => "process.json",
            Self::Cleanup => "cleanup.json",
        }
    }
}

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
            let process = process.map_err(ShimError::file("read", "/proc/self"))?;
            state.set_process(Worker::Server, &process)?;
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
        self.write_json(OWNER, owner)
    }

    /// Returns the container whose `delete` ends the pod, if it is recorded.
    pub(crate) fn owner(&self) -> Option<Owner> {
        self.read_json(OWNER)
    }

    /// Keeps the exit of the owner for the process that will add its event.
    pub(crate) fn set_exit(&self, record: &ExitRecord) -> Result<(), ShimError> {
        self.write_json(EXIT, record)
    }

    /// Returns the exit whose event has to be added.
    pub(crate) fn exit(&self) -> Option<ExitRecord> {
        self.read_json(EXIT)
    }

    /// Removes the exit, whose event has been added.
    pub(crate) fn remove_exit(&self) {
        let _ = fs::remove_file(self.path.join(EXIT));
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let text = fs::read(self.path.join(name)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), ShimError> {
        let path = self.path.join(name);
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(value)?;
            write_file_unsynced(&path, &text).map_err(io::Error::other)
        };
        write().map_err(ShimError::file("write", &path))
    }

    fn set_process(&self, worker: Worker, process: &PidRecord) -> Result<(), ShimError> {
        let path = self.path.join(worker.file());
        let written = process.write(&path).map_err(io::Error::other);
        written.map_err(ShimError::file("write", path))
    }

    /// Starts a process that works on the pod, and records it.
    pub(crate) fn spawn(&self, worker: Worker, command: &mut Command) -> Result<(), ShimError> {
        let child = command.spawn().map_err(ShimError::Spawn)?;
        // This process is its parent, so its pid is not that of another one.
        let process = PidRecord::of(child.id()).map_err(ShimError::file("read", "/proc"))?;
        match process {
            Some(process) => self.set_process(worker, &process),
            // It has ended.
            None => Ok(()),
        }
    }

    /// Returns a process that works on the pod, if it is recorded.
    pub(crate) fn process(&self, worker: Worker) -> Option<PidRecord> {
        let path = self.path.join(worker.file());
        PidRecord::read(&path).ok().flatten()
    }

    /// Returns whether all processes that work on the pod have ended; `None` if none is recorded.
    pub(crate) fn is_left(&self) -> Option<bool> {
        let processes = Worker::ALL.map(|worker| self.process(worker));
        let mut processes = processes.iter().flatten().peekable();
        processes.peek()?;
        Some(processes.all(has_ended))
    }

    /// The home of the VMM runtime, whose only box is the guest.
    pub(crate) fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    /// What all pods know of the host.
    pub(crate) fn cache(&self) -> PathBuf {
        self.path.with_file_name("cache")
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

    /// Removes the mounts in the directory, and what belongs to the guest. The events and the records are left: with them,
    /// another process can continue after this one.
    pub(crate) fn remove_guest(&self) -> Result<(), ShimError> {
        unmount_all(&self.path)?;
        let dirs = [
            self.home(),
            self.pod().path().to_owned(),
            self.files().path().to_owned(),
        ];
        for dir in dirs {
            fs::remove_dir_all(&dir)
                .or_else(ignore_not_found)
                .map_err(ShimError::file("remove", dir))?;
        }
        let socket = self.socket();
        fs::remove_file(&socket)
            .or_else(ignore_not_found)
            .map_err(ShimError::file("remove", socket))
    }

    /// Removes the mounts in the directory, and the directory.
    pub(crate) fn remove(&self) -> Result<(), ShimError> {
        // The records last: without them, another process cannot continue.
        self.remove_guest()?;
        fs::remove_dir_all(self.events())
            .or_else(ignore_not_found)
            .map_err(ShimError::file("remove", self.events()))?;
        fs::remove_dir_all(&self.path)
            .or_else(ignore_not_found)
            .map_err(ShimError::file("remove", &self.path))
    }
}

fn ignore_not_found(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}
