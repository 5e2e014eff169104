//! A walk through a control group and the groups that its payload has created within.
//!
//! The payload decides how deep and how wide this tree is.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};

use super::cgroupfs::is_removed;

/// The depth at which a walk stops descending past its budget, in case a payload nests groups
/// faster than the walk descends. The kernel stores in each group a pointer to every ancestor, so
/// its memory does not suffice for this depth.
const MAX_DEPTH: usize = 1 << 16;

/// Visits the root group and its descendants, depth first. Returns whether it has visited all of
/// them.
///
/// Calls `enter` with each group, and `leave` with the parent and the name of each descendant after
/// all groups within that descendant have been visited.
///
/// The walk visits about `budget` groups, because a payload can create any number of them, also
/// while the walk runs. Past the budget, it descends directly to an innermost group. Each walk
/// whose `leave` removes groups therefore makes progress.
///
/// The walk uses neither a stack frame nor a file descriptor per level, and no paths: the path of
/// the innermost group may be longer than the kernel accepts. It skips groups that are removed
/// while it runs.
pub(super) fn walk(
    root: &Path,
    mut budget: usize,
    mut enter: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
    mut leave: impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
) -> io::Result<bool> {
    let mut is_complete = true;
    let mut list = |group: BorrowedFd<'_>, depth: usize| {
        let limit = budget.max(usize::from(depth < MAX_DEPTH));
        let (groups, are_all) = child_groups(group, limit)?;
        budget = budget.saturating_sub(groups.len());
        is_complete &= are_all;
        io::Result::Ok(groups)
    };
    let Some(mut group) = unless_removed(open_group(CWD, root))? else {
        return Ok(true);
    };
    unless_removed(enter(group.as_fd()))?;
    let mut names = Vec::new();
    let mut pending = vec![list(group.as_fd(), 0)?];
    while let Some(siblings) = pending.last_mut() {
        if let Some(name) = siblings.pop() {
            if let Some(inner) = unless_removed(open_group(group.as_fd(), name.as_c_str()))? {
                group = inner;
                unless_removed(enter(group.as_fd()))?;
                names.push(name);
                pending.push(list(group.as_fd(), names.len())?);
            }
        } else {
            pending.pop();
            if let Some(name) = names.pop() {
                group = open_group(group.as_fd(), c"..")?;
                leave(group.as_fd(), &name)?;
            }
        }
    }
    Ok(is_complete)
}

/// Reads a file of a group.
pub(super) fn read_at(group: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = String::new();
    File::from(openat(group, file, flags, Mode::empty())?).read_to_string(&mut text)?;
    Ok(text)
}

fn open_group(within: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(within, name, flags, Mode::empty())?)
}

/// Returns at most `limit` of the groups directly in this one, and whether these are all.
fn child_groups(group: BorrowedFd<'_>, limit: usize) -> io::Result<(Vec<CString>, bool)> {
    let mut groups = Vec::new();
    for entry in unless_removed(Dir::read_from(group).map_err(io::Error::from))?
        .into_iter()
        .flatten()
    {
        let Some(entry) = unless_removed(entry.map_err(io::Error::from))? else {
            break;
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            if groups.len() == limit {
                return Ok((groups, false));
            }
            groups.push(name.to_owned());
        }
    }
    Ok((groups, true))
}

fn unless_removed<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_removed(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{AtFlags, mkdirat, unlinkat};

    use super::*;

    #[test]
    fn a_tree_too_deep_for_a_path_is_removed() {
        const DEPTH: usize = 2_000;
        let root = tempfile::tempdir().unwrap();
        let mut innermost = open_group(CWD, root.path()).unwrap();
        for _ in 0..DEPTH {
            for name in ["sibling", "level"] {
                mkdirat(&innermost, name, Mode::RWXU).unwrap();
            }
            innermost = open_group(innermost.as_fd(), "level").unwrap();
        }
        let mut visited = 0;
        let enter = |_: BorrowedFd<'_>| {
            visited += 1;
            Ok(())
        };
        let is_complete = walk(root.path(), usize::MAX, enter, |parent, name| {
            Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
        });
        assert!(is_complete.unwrap());
        assert_eq!(visited, 1 + 2 * DEPTH);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// Removes the contents of a tree in walks with this budget. Returns the number of walks.
    fn walks_to_remove(root: &Path, budget: usize, max_visited: usize) -> usize {
        for walks in 1.. {
            let mut visited = 0;
            let enter = |_: BorrowedFd<'_>| {
                visited += 1;
                Ok(())
            };
            let is_complete = walk(root, budget, enter, |parent, name| {
                // Fails if it is not empty, as for a control group.
                let _ = unlinkat(parent, name, AtFlags::REMOVEDIR);
                Ok(())
            });
            assert!(visited <= max_visited, "{visited}");
            if is_complete.unwrap() {
                assert_eq!(fs::read_dir(root).unwrap().count(), 0);
                return walks;
            }
        }
        unreachable!()
    }

    #[test]
    fn repeated_walks_with_a_small_budget_remove_a_wide_tree() {
        let wide = tempfile::tempdir().unwrap();
        for number in 0..1_000 {
            fs::create_dir_all(wide.path().join(format!("{number}/inner"))).unwrap();
        }
        let walks = walks_to_remove(wide.path(), 100, 1 + 2 * 100);
        assert!((2..=25).contains(&walks), "{walks}");
    }

    #[test]
    fn a_walk_removes_a_tree_deeper_than_its_budget() {
        let deep = tempfile::tempdir().unwrap();
        fs::create_dir_all(deep.path().join("level/".repeat(500))).unwrap();
        assert_eq!(walks_to_remove(deep.path(), 10, 1 + 500), 1);
    }
}
