use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use rustix::mount::{MountFlags, mount, mount_remount};

use super::mounts::Source;

const HARDENED: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Makes a file or directory of the container read-only, if it exists.
pub(super) fn make_read_only(path: &Path) -> io::Result<()> {
    let Some(path) = resolve(path)? else {
        return Ok(());
    };
    let copy = Source::open(&path).map_err(io::Error::other)?;
    copy.attach(&path)?;
    // The flags have the same values in both calls. A remount would clear them.
    let flags = MountFlags::from_bits_truncate(statvfs(&path)?.f_flag.bits() as u32);
    let kept = flags & HARDENED;
    Ok(mount_remount(
        &path,
        MountFlags::BIND | MountFlags::RDONLY | kept,
        "",
    )?)
}

/// Hides a file behind `/dev/null`, or the contents of a directory, if it exists.
pub(super) fn mask(path: &Path, null: &Source) -> io::Result<()> {
    let Some(path) = resolve(path)? else {
        return Ok(());
    };
    if path.is_dir() {
        let flags = MountFlags::RDONLY | HARDENED;
        Ok(mount("tmpfs", &path, "tmpfs", flags, c"")?)
    } else {
        null.attach(&path)
    }
}

/// Returns the path without symbolic links: a mount would not follow the last one.
fn resolve(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        resolved => resolved.map(Some),
    }
}
