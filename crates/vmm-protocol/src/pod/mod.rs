//! Containers in a guest: what `containerd-shim-vmm` asks of `vmm-agent container`.
//!
//! The host shares one directory with the guest of a pod. The [`PodDir`] has the root file system of each
//! container, what is mounted into it, and the files that describe the container and its processes.
//!
//! These files are JSON. The agent uses the default for a missing field, and refuses an unknown field: an agent of an
//! earlier version would run the process without what it does not know, such as a limit.

mod container;
mod dir;
mod mount_options;
mod pid_namespace;
mod root_paths;

pub use container::{
    ContainerDevice, ContainerMount, ContainerSpec, ContainerStats, DeviceKind, HeldCapabilities,
    ProcessLimit, ProcessSpec, Resources,
};
pub use dir::PodDir;
pub use mount_options::MountOptions;
pub use pid_namespace::PidNamespace;
pub use root_paths::{create_dir_in_root, create_file_in_root};
