//! What a container sees of the host: its root file system, and the files that are mounted into it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount,
    unmount,
};
use vmm_protocol::pod::{MountOptions, PodDir};

use crate::error::ShimError;

/// Mounts the root file system and the sources of mounts below the directory of the pod.
pub(crate) fn mount_all(
    dir: &PodDir,
    id: &str,
    root_of_spec: &Path,
    rootfs: &[Mount],
    sources: &[(usize, PathBuf)],
) -> Result<(), ShimError> {
    let root = dir.root(id);
    fs::create_dir_all(&root).map_err(ShimError::file("create", &root))?;
    for entry in rootfs {
        mount_one(entry, &root).map_err(ShimError::file("mount the root file system at", &root))?;
    }
    if rootfs.is_empty() {
        mount_bind_recursive(root_of_spec, &root)
            .map_err(ShimError::file("mount", root_of_spec))?;
    }
    for (number, source) in sources {
        let target = dir.mount(id, *number);
        bind(source, &target).map_err(ShimError::file("mount", source))?;
    }
    Ok(())
}

fn mount_one(entry: &Mount, target: &Path) -> io::Result<()> {
    let options = MountOptions::parse(entry.options.iter().map(String::as_str));
    let is_bind = options.is_bind || entry.type_ == "bind";
    if is_bind {
        bind_to(Path::new(&entry.source), target, options.is_recursive)?;
        if !options.flags.is_empty() {
            mount_remount(target, MountFlags::BIND | options.flags, "")?;
        }
    } else {
        let data = CString::new(options.data).map_err(io::Error::other)?;
        mount(
            entry.source.as_str(),
            target,
            entry.type_.as_str(),
            options.flags,
            data.as_c_str(),
        )?;
    }
    if let Some(propagation) = options.propagation {
        mount_change(target, propagation)?;
    }
    Ok(())
}

/// Mounts a file or directory on a new one.
fn bind(source: &Path, target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::metadata(source)?.is_dir() {
        fs::create_dir(target)?;
    } else {
        File::create(target)?;
    }
    bind_to(source, target, true)
}

fn bind_to(source: &Path, target: &Path, is_recursive: bool) -> io::Result<()> {
    if is_recursive {
        mount_bind_recursive(source, target)?;
    } else {
        mount_bind(source, target)?;
    }
    Ok(())
}

/// Removes all mounts below a directory, then the directory. A file of the host that cannot be unmounted is not
/// deleted: the directory then stays, and this fails.
pub(crate) fn unmount_all(dir: &Path) -> Result<(), ShimError> {
    for mount in mounts_below(dir)?.into_iter().rev() {
        // A mount of virtiofsd that the guest still uses ends with it.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        unmount(&mount, flags).map_err(ShimError::file("unmount", mount))?;
    }
    if let Some(mount) = mounts_below(dir)?.pop() {
        let error = io::Error::from(io::ErrorKind::ResourceBusy);
        return Err(ShimError::file("unmount", mount)(error));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ShimError::file("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Returns the mount points below a directory, in the order in which they were mounted.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, ShimError> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let text = fs::read_to_string(MOUNTS).map_err(ShimError::file("read", MOUNTS))?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    // A path of this program needs no escapes.
    let points = points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(dir));
    Ok(points.collect())
}
