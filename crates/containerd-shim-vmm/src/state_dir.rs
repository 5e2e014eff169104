use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ulid::Ulid;
use vmm_protocol::pod::PodDir;

use crate::error::ShimError;
use crate::unmount::unmount_all;

const SCHEME: &str = "unix://";

/// The file with the ID of the container for which the pod was started.
const OWNER: &str = "owner";

/// The directory of a pod. Its path is short, because that of a socket must be: that of a bundle is too long.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Creates the directory of a new pod.
    pub(crate) fn create(parent: &Path) -> Result<Self, ShimError> {
        let path = parent.join(Ulid::generate().to_string());
        let mut builder = DirBuilder::new();
        let created = builder.recursive(true).mode(0o700).create(&path);
        created.map_err(ShimError::file("create", &path))?;
        Ok(Self { path })
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

    /// Records the container whose `delete` ends the pod.
    pub(crate) fn set_owner(&self, id: &str) -> Result<(), ShimError> {
        let path = self.path.join(OWNER);
        fs::write(&path, id).map_err(ShimError::file("write", path))
    }

    /// Returns the container whose `delete` ends the pod, if it is recorded.
    pub(crate) fn owner(&self) -> Option<String> {
        let owner = fs::read_to_string(self.path.join(OWNER)).ok()?;
        Some(owner).filter(|owner| !owner.is_empty())
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
