use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use vmm_protocol::pod::{ContainerDevice, DeviceKind};

use super::error::ContainerError;
use super::mounts::Source;

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

pub(super) fn open() -> Result<Vec<Source>, ContainerError> {
    let open = |name| Source::open(&Path::new("/dev").join(name));
    DEVICES.into_iter().map(open).collect()
}

/// Fills the `/dev` of a container.
pub(super) fn fill_dev(devices: &[Source]) -> io::Result<()> {
    for (name, device) in DEVICES.iter().zip(devices) {
        device.attach(&Path::new("/dev").join(name))?;
    }
    for (target, link) in LINKS {
        symlink(target, link)?;
    }
    Ok(())
}

/// Creates a device, unless the container has it already.
pub(super) fn create(device: &ContainerDevice) -> io::Result<()> {
    let path = &device.path;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let numbers = makedev(device.major, device.minor);
    match mknodat(CWD, path, kind, Mode::empty(), numbers) {
        Err(Errno::EXIST) => return Ok(()),
        created => created?,
    }
    lchown(path, Some(device.uid), Some(device.gid))?;
    // mknod(2) would apply the umask to them.
    fs::set_permissions(path, Permissions::from_mode(device.mode))
}
