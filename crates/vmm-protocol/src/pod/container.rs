use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A container of a guest, without its processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ContainerSpec {
    /// The container whose host name and IPC objects this one shares: the sandbox of its pod.
    pub sandbox: Option<String>,
    /// The host name; that of the guest by default.
    pub hostname: Option<String>,
    /// Whether the container has a control group namespace of its own, in which its control group is the root.
    pub cgroup_namespace: bool,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// What is mounted below the root, in this order.
    pub mounts: Vec<ContainerMount>,
    /// Devices besides those that every container has.
    pub devices: Vec<ContainerDevice>,
    /// Files and directories whose contents are hidden, absolute paths in the container.
    pub masked_paths: Vec<PathBuf>,
    /// Files and directories that are read-only, absolute paths in the container.
    pub read_only_paths: Vec<PathBuf>,
    /// Parameters of the guest's kernel by name, `sysctl(8)`.
    pub sysctls: BTreeMap<String, String>,
    /// The limits of all processes together.
    pub resources: Resources,
}

/// A mount below the root of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerMount {
    /// Where it is mounted, an absolute path in the container.
    pub destination: PathBuf,
    /// The type of a file system of the kernel, such as `proc`. `None` for a file or directory of the host,
    /// which the [`PodDir`](super::PodDir) has under the number of the mount.
    pub kind: Option<String>,
    /// The options, as in `mount(8)`.
    pub options: Vec<String>,
}

/// A device of a container, `mknod(2)`. The numbers are those of the guest's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerDevice {
    /// Where it is created, an absolute path in the container.
    pub path: PathBuf,
    /// Its type.
    pub kind: DeviceKind,
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
    /// The permissions, `chmod(2)`.
    pub mode: u32,
    /// The user that owns it.
    pub uid: u32,
    /// The group that owns it.
    pub gid: u32,
}

/// The type of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A FIFO, which has no numbers.
    Fifo,
}

/// The limits of a container. `None` is unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// The memory, in bytes.
    pub memory: Option<u64>,
    /// The number of processes and threads.
    pub pids: Option<u64>,
    /// The CPU time and the period in which it can be used, in microseconds.
    pub cpu: Option<(u64, u64)>,
    /// What is written to further files of the control group, version 2, by their names, such as `cpu.weight`.
    pub unified: BTreeMap<String, String>,
}

/// A process of a container. The `Debug` output omits nothing: do not log it, it can contain secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    /// The capabilities that the process can have: the bounding set, as a bit mask, `capabilities(7)`; all by default.
    pub capabilities: Option<u64>,
    /// The capabilities that the process has; those of its user by default.
    pub held_capabilities: Option<HeldCapabilities>,
    /// The permissions that new files do not get, `umask(2)`; those of the guest by default.
    pub umask: Option<u32>,
    /// How likely the kernel of the guest is to kill the process for lack of memory, `proc_pid_oom_score_adj(5)`.
    pub oom_score_adj: Option<i32>,
    /// The resource limits.
    pub limits: Vec<ProcessLimit>,
}

/// The capability sets of a process besides the bounding set, as bit masks, `capabilities(7)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeldCapabilities {
    /// The capabilities that the kernel checks.
    pub effective: u64,
    /// The capabilities that can become effective.
    pub permitted: u64,
    /// The capabilities that a program with the same file capabilities keeps.
    pub inheritable: u64,
    /// The capabilities that a program without file capabilities keeps, also if the user is not root.
    pub ambient: u64,
}

/// A resource limit of a process, `setrlimit(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// The limit of the memory, in bytes; `u64::MAX` without one.
    pub memory_limit: u64,
    /// The part of the memory that caches files and was not used recently, which the kernel takes back first, in bytes.
    pub memory_inactive_file: u64,
    /// The part of the memory that belongs to no file, in bytes.
    pub memory_anonymous: u64,
    /// The number of page faults.
    pub page_faults: u64,
    /// The number of page faults that waited for the disk.
    pub major_page_faults: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_an_agent_does_not_know_is_refused() {
        for text in [r#"{"unknown": 1}"#, r#"{"resources": {"unknown": 1}}"#] {
            let error = serde_json::from_str::<ContainerSpec>(text).unwrap_err();
            assert!(error.to_string().contains("unknown field"), "{error}");
        }
        assert!(serde_json::from_str::<ProcessSpec>(r#"{"unknown": 1}"#).is_err());
    }
}
