use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container of a guest, without its processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContainerSpec {
    /// The container whose host name and IPC objects this one shares: the sandbox of its pod.
    pub sandbox: Option<String>,
    /// The host name; that of the guest by default.
    pub hostname: Option<String>,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// What is mounted below the root, in this order.
    pub mounts: Vec<ContainerMount>,
    /// The limits of all processes together.
    pub resources: Resources,
}

/// A mount below the root of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMount {
    /// Where it is mounted, an absolute path in the container.
    pub destination: PathBuf,
    /// The type of a file system of the kernel, such as `proc`. `None` for a file or directory of the host,
    /// which the [`PodDir`](super::PodDir) has under the number of the mount.
    pub kind: Option<String>,
    /// The options, as in `mount(8)`.
    pub options: Vec<String>,
}

/// The limits of a container. `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The memory, in bytes.
    pub memory: Option<u64>,
    /// The number of processes and threads.
    pub pids: Option<u64>,
    /// The CPU time and the period in which it can be used, in microseconds.
    pub cpu: Option<(u64, u64)>,
}

/// A process of a container. The `Debug` output omits nothing: do not log it, it can contain secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProcessSpec {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// The environment, complete.
    pub env: BTreeMap<String, String>,
    /// The working directory, an absolute path in the container.
    pub cwd: PathBuf,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
    /// Whether the process can gain no privileges.
    pub no_new_privs: bool,
    /// The capabilities that the process can have, as a bit mask, `capabilities(7)`; all by default.
    pub capabilities: Option<u64>,
    /// The resource limits.
    pub limits: Vec<ProcessLimit>,
}

/// A resource limit of a process, `setrlimit(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimit {
    /// The name, such as `RLIMIT_NOFILE`.
    pub name: String,
    /// The limit that the kernel enforces.
    pub soft: u64,
    /// The maximum of the soft limit.
    pub hard: u64,
}

/// What the processes of a container use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ContainerStats {
    /// The memory, in bytes.
    pub memory: u64,
    /// The CPU time, in microseconds.
    pub cpu_micros: u64,
    /// The part of it in user mode, in microseconds.
    pub cpu_user_micros: u64,
    /// The part of it in the kernel, in microseconds.
    pub cpu_system_micros: u64,
    /// The number of processes and threads.
    pub pids: u64,
    /// How many processes the kernel has killed for lack of memory.
    pub oom_kills: u64,
}
