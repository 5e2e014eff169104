//! A walk through a control group and the groups that its payload has created within.
//!
//! The payload decides how deep and how wide this tree is.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};

use super::cgroupfs::is_removed;

/// A payload can create groups faster than the walk visits them.
const WALK_TIMEOUT: Duration = Duration::from_secs(5);

/// Visits the root group and all its descendants, depth first.
///
/// Calls `enter` with each group, and `leave` with the parent and the name of each descendant after
/// all groups within that descendant have been visited.
///
/// The walk uses neither a stack frame nor a file descriptor per level, and no paths: the path of
/// the innermost group may be longer than the kernel accepts. It skips groups that are removed
/// while it runs.
pub(super) fn walk(
    root: &Path,
    mut enter: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
    mut leave: impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
) -> io::Result<()> {
    let deadline = Instant::now() + WALK_TIMEOUT;
    let Some(mut group) = unless_removed(open_group(CWD, root))? else {
        return Ok(());
    };
    unless_removed(enter(group.as_fd()))?;
    let mut names = Vec::new();
    let mut pending = vec![child_groups(group.as_fd())?];
    while let Some(siblings) = pending.last_mut() {
        if Instant::now() >= deadline {
            let message = "the payload has created too many nested groups";
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        if let Some(name) = siblings.pop() {
            if let Some(inner) = unless_removed(open_group(group.as_fd(), name.as_c_str()))? {
                group = inner;
                unless_removed(enter(group.as_fd()))?;
                names.push(name);
                pending.push(child_groups(group.as_fd())?);
            }
        } else {
            pending.pop();
            if let Some(name) = names.pop() {
                group = open_group(group.as_fd(), c"..")?;
                leave(group.as_fd(), &name)?;
            }
        }
    }
    Ok(())
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

fn child_groups(group: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
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
            groups.push(name.to_owned());
        }
    }
    Ok(groups)
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
        walk(root.path(), enter, |parent, name| {
            Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
        })
        .unwrap();
        assert_eq!(visited, 1 + 2 * DEPTH);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
