use std::io;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::boot::wait_for;
use crate::error::AgentError;
use crate::kernel_command_line::KernelCommandLine;
use crate::mounts::{KERNEL_FILE_SYSTEMS, create_dir, mount_error, mount_new};

const DEVICE_TIMEOUT: Duration = Duration::from_secs(10);
const NO_DATA: Option<&str> = None;

/// Mounts the root file system that the kernel command line names, and makes it the root of this
/// process. Without one, the initrd stays the root.
pub(crate) fn enter(options: &KernelCommandLine<'_>) -> Result<(), AgentError> {
    let Some(device) = options.root.map(Path::new) else {
        return Ok(());
    };
    wait_for(DEVICE_TIMEOUT, || device.exists().then_some(()))
        .ok_or_else(|| AgentError::RootNotFound(device.to_owned()))?;
    if options.overlay {
        mount_device(device, options.root_type, "/base", MsFlags::MS_RDONLY)?;
        mount_overlay()?;
    } else {
        mount_device(device, options.root_type, "/root", MsFlags::empty())?;
    }
    for source in KERNEL_FILE_SYSTEMS {
        let target = format!("/root{source}");
        create_dir(&target)
            .and_then(|()| move_mount(source, &target))
            .map_err(mount_error(source, target.as_ref()))?;
    }
    // As switch_root(8) does: the initrd cannot be unmounted, and stays below the new root.
    chdir("/root")
        .map_err(io::Error::from)
        .and_then(|()| move_mount(".", "/"))
        .and_then(|()| Ok(chroot(".")?))
        .and_then(|()| Ok(chdir("/")?))
        .map_err(AgentError::system("enter the root file system"))
}

/// Mounts a device whose file system has the type, or one of those that images have.
fn mount_device(
    device: &Path,
    root_type: Option<&str>,
    target: &str,
    flags: MsFlags,
) -> Result<(), AgentError> {
    let attempt = |kind: &str| {
        create_dir(target)?;
        Ok(mount(Some(device), target, Some(kind), flags, NO_DATA)?)
    };
    let result = match root_type {
        Some(kind) => attempt(kind),
        None => attempt("erofs").or_else(|_| attempt("ext4")),
    };
    result.map_err(mount_error(&device.to_string_lossy(), target.as_ref()))
}

/// Mounts an overlay of a file system in memory over `/base` on `/root`.
fn mount_overlay() -> Result<(), AgentError> {
    mount_new("tmpfs", "/overlay", MsFlags::empty(), "mode=755")?;
    for dir in ["/overlay/upper", "/overlay/work"] {
        create_dir(dir).map_err(mount_error("overlay", dir.as_ref()))?;
    }
    let layers = "lowerdir=/base,upperdir=/overlay/upper,workdir=/overlay/work";
    mount_new("overlay", "/root", MsFlags::empty(), layers)
}

fn move_mount(source: &str, target: &str) -> io::Result<()> {
    Ok(mount(
        Some(source),
        target,
        NO_DATA,
        MsFlags::MS_MOVE,
        NO_DATA,
    )?)
}
