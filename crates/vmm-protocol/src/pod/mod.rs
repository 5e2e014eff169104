//! Containers in a guest: what `containerd-shim-vmm` asks of `vmm-agent container`.
//!
//! The host shares one directory with the guest of a pod. The [`PodDir`] has the root file system of each
//! container, what is mounted into it, and the files that describe the container and its processes.

mod container;
mod dir;
mod mount_options;

pub use container::{
    ContainerMount, ContainerSpec, ContainerStats, ProcessLimit, ProcessSpec, Resources,
};
pub use dir::PodDir;
pub use mount_options::MountOptions;
