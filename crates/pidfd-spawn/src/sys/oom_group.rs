//! Keeps this process alive when the out-of-memory killer ends a control group.
//!
//! The killer spares a child of `vfork(2)`, because it shares the memory of its parent. But where
//! `memory.oom.group` is set, it kills every process of the group, and with each of them all that
//! share its memory (`oom_kill_memcg_member` in `mm/oom_kill.c`). The `exec` of a child in a full
//! group is enough to start that. So a child that shares memory must not be in such a group.

use std::ffi::{CString, c_int};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

/// Returns true if the killer may end this control group as a whole, or if that is unknown.
pub(super) fn may_be_killed(group: BorrowedFd<'_>) -> bool {
    // The setting of an ancestor counts for the groups below it.
    let mut dir = String::new();
    loop {
        match setting(group, &dir) {
            Ok(b'0') => {}
            // The root and groups without the memory controller do not have it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let file = format!("{dir}cgroup.procs");
                if open(group, file, libc::O_PATH).is_err() {
                    return dir.is_empty();
                }
            }
            _ => return true,
        }
        dir.push_str("../");
    }
}

fn setting(group: BorrowedFd<'_>, dir: &str) -> io::Result<u8> {
    let mut file = open(group, format!("{dir}memory.oom.group"), libc::O_RDONLY)?;
    let mut digit = [0];
    file.read_exact(&mut digit)?;
    Ok(digit[0])
}

/// Opens a file relative to a directory. Much faster than by way of `/proc/self/fd`.
fn open(dir: BorrowedFd<'_>, path: String, flags: c_int) -> io::Result<File> {
    let path = CString::new(path)?;
    // SAFETY: takes a C string.
    let fd = unsafe { libc::openat(dir.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created the descriptor, and no other code has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;

    /// Whether it may be killed: a directory that looks like a control group, with these settings of
    /// the root, its parent and itself.
    fn may_group_be_killed(settings: [Option<&str>; 3]) -> bool {
        let outside = tempfile::tempdir().unwrap();
        let mut group = outside.path().to_owned();
        for (name, setting) in ["root", "parent", "child"].iter().zip(settings) {
            group.push(name);
            fs::create_dir(&group).unwrap();
            fs::write(group.join("cgroup.procs"), "").unwrap();
            if let Some(setting) = setting {
                fs::write(group.join("memory.oom.group"), setting).unwrap();
            }
        }
        may_be_killed(File::open(group).unwrap().as_fd())
    }

    #[test]
    fn a_group_or_an_ancestor_can_be_killed_as_a_whole() {
        for (settings, expected) in [
            ([None, Some("0\n"), Some("0\n")], false),
            ([None, Some("0\n"), Some("1\n")], true),
            ([None, Some("1\n"), Some("0\n")], true),
            ([None, Some("1\n"), None], true),
            ([None, None, None], false),
        ] {
            assert_eq!(may_group_be_killed(settings), expected, "{settings:?}");
        }
    }

    #[test]
    fn what_is_not_a_group_is_unknown() {
        for path in ["/", "/dev/null"] {
            assert!(may_be_killed(File::open(path).unwrap().as_fd()), "{path}");
        }
    }
}
