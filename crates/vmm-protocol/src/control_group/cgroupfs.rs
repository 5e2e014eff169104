//! Access to the files of a control group.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, FsWord, Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;

/// The file that lists the processes of a control group. A process that writes 0 to it enters the
/// group.
pub const PROCS_FILE: &str = "cgroup.procs";

/// Writes to a file of a control group. Never creates the file: the kernel would then return EACCES
/// instead of ENOENT for a missing one.
pub(super) fn write_setting(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

/// Returns the names of the groups directly in this one.
pub(super) fn child_groups(dir: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

/// Returns true if the error means that the group was removed. ENODEV: between the open and the
/// read of one of its files.
pub(super) fn is_removed(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NODEV)
    )
}

/// Returns true if the path is a control group. Returns false for a symbolic link to one: the link
/// of a payload may lead to a group of another box.
pub(super) fn is_control_group(path: &Path) -> bool {
    // The two versions, linux/magic.h.
    const CGROUP_SUPER_MAGIC: FsWord = 0x0027_e0eb;
    const CGROUP2_SUPER_MAGIC: FsWord = 0x6367_7270;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(group) = openat(CWD, path, flags, Mode::empty()) else {
        return false;
    };
    fstatfs(&group).is_ok_and(|file_system| {
        [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&file_system.f_type)
    })
}
