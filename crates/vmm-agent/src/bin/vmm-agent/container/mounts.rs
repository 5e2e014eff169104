use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::unistd::{chdir, chroot};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_move, mount_remount,
    move_mount, open_tree,
};
use vmm_protocol::pod::{
    ContainerMount, ContainerSpec, MountOptions, PodDir, create_dir_in_root, create_file_in_root,
};

use super::error::ContainerError;
use super::{devices, protected_paths};

/// A file or directory that becomes a mount in the container, also if it is outside.
pub(super) struct Source {
    mount: OwnedFd,
    is_dir: bool,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, ContainerError> {
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

    pub(super) fn attach(&self, target: &Path) -> io::Result<()> {
        create_target(target, self.is_dir)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&self.mount, "", CWD, target, flags)?)
    }
}

/// Makes the root file system of a container, with its mounts, the root of this process.
///
/// Targets are looked up after that, so a symbolic link in the root file system cannot lead out of it; those of `/proc`
/// can, but nothing is created behind them, and the kernel mounts nothing in another namespace of mounts. What is mounted
/// from outside is opened before.
pub(super) fn enter_root(
    dir: &PodDir,
    id: &str,
    container: &ContainerSpec,
) -> Result<(), ContainerError> {
    let default_devices = devices::open()?;
    // A mount can be attached once.
    let masks = container.masked_paths.iter();
    let masks = masks.map(|_| Source::open(Path::new("/dev/null")));
    let masks: Vec<_> = masks.collect::<Result<_, _>>()?;
    let mounts = &container.mounts;
    let sources = mounts.iter().enumerate().map(|(number, mount)| {
        let source = mount.kind.is_none().then(|| dir.mount(id, number));
        source.map(|path| Source::open(&path)).transpose()
    });
    let sources: Vec<_> = sources.collect::<Result<_, ContainerError>>()?;
    change_root(&dir.root(id)).map_err(ContainerError::system("enter the root file system"))?;
    let mut dev_is_of_host = false;
    for (mount, source) in mounts.iter().zip(&sources) {
        let destination = &mount.destination;
        attach(mount, source.as_ref()).map_err(on("mount", destination))?;
        if destination == Path::new("/dev") {
            dev_is_of_host = source.is_some();
            if !dev_is_of_host {
                devices::fill_dev(&default_devices)
                    .map_err(ContainerError::system("create the devices"))?;
            }
        }
    }
    if !dev_is_of_host {
        for device in &container.devices {
            devices::create(device).map_err(on("create", &device.path))?;
        }
    }
    if container.read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        mount_remount("/", flags, "").map_err(ContainerError::system(
            "make the root file system read-only",
        ))?;
    }
    for path in &container.read_only_paths {
        protected_paths::make_read_only(path).map_err(on("make read-only", path))?;
    }
    for (path, mask) in container.masked_paths.iter().zip(&masks) {
        protected_paths::mask(path, mask).map_err(on("mask", path))?;
    }
    Ok(())
}

/// Returns a function that adds what could not be done to a path to an error.
fn on(action: &str, path: &Path) -> impl FnOnce(io::Error) -> ContainerError {
    ContainerError::system(format!("{action} {}", path.display()))
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
    let root = Path::new("/");
    if is_dir {
        create_dir_in_root(root, target).map(drop)
    } else {
        create_file_in_root(root, target)
    }
}
