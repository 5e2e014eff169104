use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::unistd::{chdir, chroot};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_move, mount_remount,
    move_mount, open_tree,
};
use vmm_protocol::pod::{ContainerMount, ContainerSpec, MountOptions, PodDir};

use super::error::ContainerError;

/// The devices that every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// The links that every container has in `/dev`.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// A file or directory outside of the container that becomes a mount in it.
struct Source {
    mount: OwnedFd,
    is_dir: bool,
}

impl Source {
    fn open(path: &Path) -> Result<Self, ContainerError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let open = || -> io::Result<Self> {
            Ok(Self {
                is_dir: fs::metadata(path)?.is_dir(),
                mount: open_tree(CWD, path, flags)?,
            })
        };
        open().map_err(ContainerError::system(format!("open {}", path.display())))
    }

    fn attach(&self, target: &Path) -> io::Result<()> {
        create_target(target, self.is_dir)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&self.mount, "", CWD, target, flags)?)
    }
}

/// Makes the root file system of a container, with its mounts, the root of this process.
///
/// Targets are looked up after that, so a symbolic link in the root file system cannot lead out of it. What
/// is mounted from outside is opened before.
pub(super) fn enter_root(
    dir: &PodDir,
    id: &str,
    container: &ContainerSpec,
) -> Result<(), ContainerError> {
    let devices = open_devices()?;
    let mounts = &container.mounts;
    let sources = mounts.iter().enumerate().map(|(number, mount)| {
        let source = mount.kind.is_none().then(|| dir.mount(id, number));
        source.map(|path| Source::open(&path)).transpose()
    });
    let sources: Vec<_> = sources.collect::<Result<_, ContainerError>>()?;
    change_root(&dir.root(id)).map_err(ContainerError::system("enter the root file system"))?;
    for (mount, source) in mounts.iter().zip(&sources) {
        let destination = &mount.destination;
        attach(mount, source.as_ref()).map_err(ContainerError::system(format!(
            "mount {}",
            destination.display()
        )))?;
        if destination == Path::new("/dev") && source.is_none() {
            fill_dev(&devices).map_err(ContainerError::system("create the devices"))?;
        }
    }
    if container.read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount("/", flags, "").map_err(ContainerError::system(
            "make the root file system read-only",
        ))?;
    }
    Ok(())
}

/// Replaces the root. As switch_root(8) does: the initrd cannot be unmounted, and stays below the new root.
fn change_root(root: &Path) -> io::Result<()> {
    let source = Source::open(root).map_err(io::Error::other)?;
    source.attach(root)?;
    // The directory of the pod is mounted without these.
    mount_remount(root, MountFlags::BIND, "")?;
    chdir(root)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

fn attach(entry: &ContainerMount, source: Option<&Source>) -> io::Result<()> {
    let target = &entry.destination;
    let options = MountOptions::parse(entry.options.iter().map(String::as_str));
    match (&entry.kind, source) {
        (_, Some(source)) => {
            source.attach(target)?;
            if !options.flags.is_empty() {
                mount_remount(target, MountFlags::BIND | options.flags, "")?;
            }
        }
        (Some(kind), None) => {
            create_target(target, true)?;
            // The guest has no control groups of version 1.
            let kind = if kind == "cgroup" { "cgroup2" } else { kind };
            let data = CString::new(options.data).map_err(io::Error::other)?;
            mount(kind, target, kind, options.flags, data.as_c_str())?;
        }
        (None, None) => {}
    }
    match options.propagation {
        Some(propagation) => Ok(mount_change(target, propagation)?),
        None => Ok(()),
    }
}

fn create_target(target: &Path, is_dir: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if is_dir {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create(target).map(drop)
}

fn open_devices() -> Result<Vec<Source>, ContainerError> {
    let open = |name| Source::open(&Path::new("/dev").join(name));
    DEVICES.into_iter().map(open).collect()
}

/// Fills the `/dev` of a container.
fn fill_dev(devices: &[Source]) -> io::Result<()> {
    for (name, device) in DEVICES.iter().zip(devices) {
        device.attach(&Path::new("/dev").join(name))?;
    }
    for (target, link) in LINKS {
        symlink(target, link)?;
    }
    Ok(())
}
