use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat};
use rustix::io::Errno;
use vmm_protocol::pod::{ContainerDevice, DeviceKind, create_dir_in_root};

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
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = create_dir_in_root(Path::new("/"), parent)?;
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let numbers = makedev(device.major, device.minor);
    match mknodat(&parent, name, kind, Mode::empty(), numbers) {
        Err(Errno::EXIST) => return Ok(()),
        created => created?,
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(
        &parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    // mknod(2) would apply the umask to them.
    let mode = Mode::from_raw_mode(device.mode);
    Ok(chmodat(&parent, name, mode, AtFlags::empty())?)
}
