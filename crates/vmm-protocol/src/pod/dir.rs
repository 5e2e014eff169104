use std::path::{Path, PathBuf};

/// The directory that the host shares with the guest of a pod. Its paths are below the directory of the
/// host, or below [`PodDir::IN_GUEST`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDir {
    path: PathBuf,
}

impl PodDir {
    /// The name by which the guest mounts the directory.
    pub const TAG: &str = "pod";

    /// Where the guest mounts it.
    pub const IN_GUEST: &str = "/run/vmm/pod";

    /// Returns the paths below this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the paths as the guest sees them.
    pub fn in_guest() -> Self {
        Self::new(Self::IN_GUEST)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of a container.
    pub fn container(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    /// The root file system of a container.
    pub fn root(&self, id: &str) -> PathBuf {
        self.container(id).join("rootfs")
    }

    /// A file or directory of the host that is mounted into a container.
    pub fn mount(&self, id: &str, number: usize) -> PathBuf {
        self.container(id).join("mounts").join(number.to_string())
    }

    /// The file with the [`ContainerSpec`](super::ContainerSpec).
    pub fn container_spec(&self, id: &str) -> PathBuf {
        self.container(id).join("container.json")
    }

    /// The file with a [`ProcessSpec`](super::ProcessSpec): of the first process if `exec_id` is empty.
    pub fn process_spec(&self, id: &str, exec_id: &str) -> PathBuf {
        self.container(id).join(format!("process-{exec_id}.json"))
    }
}
