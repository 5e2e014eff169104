//! Keeps this process alive when the out-of-memory killer ends a control group.
//!
//! The killer spares a child of `vfork(2)`, because it shares the memory of its parent. But where
//! `memory.oom.group` is set, it kills every process of the group, and with each of them all that
//! share its memory (`oom_kill_memcg_member` in `mm/oom_kill.c`). The `exec` of a child in a full
//! group is enough to start that. So a child that shares memory must not be in such a group.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

/// Returns true if the killer may end this control group as a whole, or if that is unknown.
pub(super) fn may_be_killed(group: BorrowedFd<'_>) -> bool {
    ends_as_a_whole(format!("/proc/thread-self/fd/{}", group.as_raw_fd()).into())
}

fn ends_as_a_whole(mut group: PathBuf) -> bool {
    let is_group = |dir: &PathBuf| dir.join("cgroup.procs").exists();
    if !is_group(&group) {
        return true;
    }
    // The setting of an ancestor counts for the groups below it.
    while is_group(&group) {
        match fs::read(group.join("memory.oom.group")) {
            Ok(setting) if setting.trim_ascii() == b"0" => {}
            // The root and groups without the memory controller do not have it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => return true,
        }
        group.push("..");
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Creates directories that look like a control group, its parent and the root.
    fn groups(settings: [Option<&str>; 3]) -> (tempfile::TempDir, PathBuf) {
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
        (outside, group)
    }

    #[test]
    fn a_group_or_an_ancestor_can_end_as_a_whole() {
        for (settings, expected) in [
            ([None, Some("0\n"), Some("0\n")], false),
            ([None, Some("0\n"), Some("1\n")], true),
            ([None, Some("1\n"), Some("0\n")], true),
            ([None, Some("1\n"), None], true),
            ([None, None, None], false),
        ] {
            let (_outside, group) = groups(settings);
            assert_eq!(ends_as_a_whole(group), expected, "{settings:?}");
        }
    }

    #[test]
    fn an_unknown_group_can_end_as_a_whole() {
        assert!(ends_as_a_whole(Path::new("/nonexistent").to_owned()));
    }
}
