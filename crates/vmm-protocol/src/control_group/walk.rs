//! A walk through a control group that its payload may have divided, however deep and wide.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};

use super::group::is_gone;

/// How long a walk may take: a payload can make groups while it goes on.
const WALK_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls `enter` with the group and with each one within, and `leave` with the parent and the name
/// of each one within when the walk has been through that: the innermost first.
///
/// Takes neither a stack frame nor a descriptor per level, and no path: a path to the innermost
/// group may be longer than the kernel takes. Groups that vanish meanwhile are passed over.
pub(super) fn walk(
    root: &Path,
    mut enter: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
    mut leave: impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
) -> io::Result<()> {
    let deadline = Instant::now() + WALK_TIMEOUT;
    let Some(mut group) = unless_gone(open_group(CWD, root))? else {
        return Ok(());
    };
    unless_gone(enter(group.as_fd()))?;
    let mut names = Vec::new();
    let mut pending = vec![groups_in(group.as_fd())?];
    while let Some(siblings) = pending.last_mut() {
        if Instant::now() >= deadline {
            let message = "its payload has divided it too often";
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        if let Some(name) = siblings.pop() {
            if let Some(inner) = unless_gone(open_group(group.as_fd(), name.as_c_str()))? {
                group = inner;
                unless_gone(enter(group.as_fd()))?;
                names.push(name);
                pending.push(groups_in(group.as_fd())?);
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

fn groups_in(group: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut groups = Vec::new();
    for entry in unless_gone(Dir::read_from(group).map_err(io::Error::from))?
        .into_iter()
        .flatten()
    {
        let Some(entry) = unless_gone(entry.map_err(io::Error::from))? else {
            break;
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            groups.push(name.to_owned());
        }
    }
    Ok(groups)
}

fn unless_gone<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{AtFlags, mkdirat, unlinkat};

    use super::*;

    #[test]
    fn a_tree_that_no_path_reaches_is_removed_from_within() {
        const DEPTH: usize = 2_000;
        let root = tempfile::tempdir().unwrap();
        let mut inner = open_group(CWD, root.path()).unwrap();
        for _ in 0..DEPTH {
            for name in ["beside", "level"] {
                mkdirat(&inner, name, Mode::RWXU).unwrap();
            }
            inner = open_group(inner.as_fd(), "level").unwrap();
        }
        let mut entered = 0;
        let enter = |_: BorrowedFd<'_>| {
            entered += 1;
            Ok(())
        };
        walk(root.path(), enter, |parent, name| {
            Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
        })
        .unwrap();
        assert_eq!(entered, 1 + 2 * DEPTH);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
