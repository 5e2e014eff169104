use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::error::AgentError;
use crate::kernel_command_line::Share;

/// The file systems of the kernel that [`crate::root`] moves into the root file system.
pub(crate) const KERNEL_FILE_SYSTEMS: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];

/// Mounts the file systems of the kernel.
pub(crate) fn mount_kernel_file_systems() -> Result<(), AgentError> {
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let in_memory = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_new("proc", "/proc", hardened, "")?;
    mount_new("sysfs", "/sys", hardened, "")?;
    mount_new("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755")?;
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_new(
        "devpts",
        "/dev/pts",
        terminals,
        "mode=620,gid=5,ptmxmode=666",
    )?;
    mount_new("tmpfs", "/dev/shm", in_memory, "mode=1777")?;
    mount_new("tmpfs", "/run", in_memory, "mode=755")?;
    // Fails on a kernel without control groups, which the agent does not need.
    let _ = mount_new("cgroup2", "/sys/fs/cgroup", hardened, "");
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        // Exists in some kernels.
        let _ = symlink(target, link);
    }
    Ok(())
}

/// Mounts `/tmp` in memory.
pub(crate) fn mount_tmp() -> Result<(), AgentError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_new("tmpfs", "/tmp", flags, "mode=1777")
}

/// Creates the directory with its parents, and mounts a directory of the host on it.
pub(crate) fn mount_share(share: &Share<'_>) -> Result<(), AgentError> {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, share.is_read_only);
    let none: Option<&str> = None;
    fs::create_dir_all(share.target)
        .and_then(|()| {
            let source = Some(share.tag);
            Ok(mount(source, share.target, Some("virtiofs"), flags, none)?)
        })
        .map_err(mount_error(
            &format!("the share {}", share.tag),
            share.target.as_ref(),
        ))
}

/// Creates the directory, and mounts a file system without a device on it.
pub(crate) fn mount_new(
    kind: &str,
    target: &str,
    flags: MsFlags,
    data: &str,
) -> Result<(), AgentError> {
    create_dir(target)
        .and_then(|()| Ok(mount(Some(kind), target, Some(kind), flags, Some(data))?))
        .map_err(mount_error(kind, target.as_ref()))
}

pub(crate) fn create_dir(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    match fs::create_dir(path) {
        // Also in a read-only file system.
        Err(_) if path.is_dir() => Ok(()),
        result => result,
    }
}

pub(crate) fn mount_error(what: &str, target: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let (what, target) = (what.to_owned(), target.to_owned());
    move |source| AgentError::Mount {
        what,
        target,
        source,
    }
}
