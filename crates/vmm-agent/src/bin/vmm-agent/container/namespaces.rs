use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::sethostname;
use rustix::mount::{MountPropagationFlags, mount_change};
use vmm_protocol::pod::ContainerSpec;

use super::error::ContainerError;
use crate::boot::wait_for;

/// A namespace, and the name of its file.
type Namespace = (CloneFlags, &'static str);

/// The namespaces that the containers of a pod share.
const OF_POD: [Namespace; 2] = [
    (CloneFlags::CLONE_NEWIPC, "ipc"),
    (CloneFlags::CLONE_NEWUTS, "uts"),
];

/// The namespaces that the processes of a container share. That of the mounts is the last to be joined, because it replaces
/// `/proc`.
const OF_CONTAINER: [Namespace; 2] = [
    (CloneFlags::CLONE_NEWCGROUP, "cgroup"),
    (CloneFlags::CLONE_NEWNS, "mnt"),
];

/// How long the first process of a container may take to prepare it.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The record of the first process of a container, which is written when the container is ready.
pub(super) struct OwnerRecord {
    file: File,
    pid: PathBuf,
}

/// Creates the namespaces of a container for this process, or joins those of its sandbox.
pub(super) fn create(id: &str, container: &ContainerSpec) -> Result<OwnerRecord, ContainerError> {
    let path = owner_file(id);
    // Opened now, because it is not below the root of the container.
    let open = || -> io::Result<OwnerRecord> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        Ok(OwnerRecord {
            file: File::create(&path)?,
            // In the PID namespace of the guest, whose `/proc` this is.
            pid: fs::read_link("/proc/self")?,
        })
    };
    let record = open().map_err(ContainerError::system(format!("open {}", path.display())))?;
    let mut flags = CloneFlags::CLONE_NEWNS;
    // Its root is the control group of this process, which is that of the container already.
    flags.set(CloneFlags::CLONE_NEWCGROUP, container.cgroup_namespace);
    match &container.sandbox {
        Some(sandbox) => enter(&wait_ready(sandbox)?, &OF_POD)?,
        None => flags.extend(OF_POD.map(|(flag, _)| flag)),
    }
    unshare(flags).map_err(ContainerError::system("create namespaces"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(ContainerError::system("make the mounts private"))?;
    if let Some(name) = &container.hostname {
        sethostname(name).map_err(ContainerError::system("set the host name"))?;
    }
    Ok(record)
}

impl OwnerRecord {
    /// Records that this process has prepared the container.
    pub(super) fn write(mut self) -> Result<(), ContainerError> {
        let written = self.file.write_all(self.pid.as_os_str().as_bytes());
        written.map_err(ContainerError::system(
            "record the process of the container",
        ))
    }
}

/// Waits until the container is ready, and returns the pid of its first process.
pub(super) fn wait_ready(id: &str) -> Result<String, ContainerError> {
    let path = owner_file(id);
    let read = || fs::read_to_string(&path).ok().filter(|pid| !pid.is_empty());
    wait_for(READY_TIMEOUT, read).ok_or(ContainerError::NotReady)
}

/// Joins the namespaces of a container whose first process has this pid, and enters its root.
pub(super) fn join(owner: &str) -> Result<(), ContainerError> {
    enter(owner, &[OF_POD, OF_CONTAINER].concat())
}

fn enter(owner: &str, namespaces: &[Namespace]) -> Result<(), ContainerError> {
    let error = || ContainerError::system("find the first process of the container");
    let open = |(flag, name): &_| Ok((*flag, File::open(format!("/proc/{owner}/ns/{name}"))?));
    let files: io::Result<Vec<_>> = namespaces.iter().map(open).collect();
    for (flag, file) in files.map_err(error())? {
        setns(file, flag).map_err(ContainerError::system("join a namespace"))?;
    }
    Ok(())
}

/// Removes the record of a container that has ended.
pub(super) fn forget(id: &str) {
    let _ = fs::remove_file(owner_file(id));
}

/// The file with the pid of the first process of a container.
fn owner_file(id: &str) -> PathBuf {
    PathBuf::from("/run/vmm/containers").join(id)
}
