use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2};
use rustix::io::Errno;

/// Creates a directory in the root file system of a container, with its parents, unless it exists. Returns it, opened with
/// `O_PATH`.
///
/// Use it for every path of a container, because its image can have any symbolic link. They are followed as a
/// process with this root follows them, but those of `/proc`, such as `/proc/1/root`, are an error: no link leads out of the root
/// (`openat2(2)`, Linux 5.6).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let root = dir.path();
/// vmm_protocol::pod::create_dir_in_root(root, "/srv/data".as_ref())?;
/// assert!(root.join("srv/data").is_dir());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// The error of the system call that failed.
pub fn create_dir_in_root(root: &Path, dir: &Path) -> io::Result<OwnedFd> {
    let root = open_root(root)?;
    let mut path = PathBuf::from(".");
    let mut current = resolve(&root, &path)?;
    for name in names(dir) {
        path.push(name);
        current = match resolve(&root, &path) {
            Err(Errno::NOENT) => {
                mkdirat(&current, name, Mode::from_raw_mode(0o755))?;
                resolve(&root, &path)?
            }
            found => found?,
        };
    }
    Ok(current)
}

/// Creates an empty file in the root file system of a container, with its parents, unless something exists there. Follows links
/// as [`create_dir_in_root`] does.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let root = dir.path();
/// vmm_protocol::pod::create_file_in_root(root, "/etc/hosts".as_ref())?;
/// assert!(root.join("etc/hosts").is_file());
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// The error of the system call that failed, and [`InvalidInput`](io::ErrorKind::InvalidInput) if the path has no
/// file name.
pub fn create_file_in_root(root: &Path, file: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = create_dir_in_root(root, parent)?;
    let path: PathBuf = names(file).collect();
    match resolve(&open_root(root)?, &path) {
        Err(Errno::NOENT) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
        }
        found => drop(found?),
    }
    Ok(())
}

fn open_root(root: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(root, flags, Mode::empty())
}

fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    })
}

fn resolve(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // Another process has moved a directory meanwhile, openat2(2).
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn missing_paths_are_created_with_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["/a/b", "/a/b", "/", "/c/../d"] {
            create_dir_in_root(dir.path(), Path::new(path)).unwrap();
        }
        for path in ["/a/hosts", "/a/hosts"] {
            create_file_in_root(dir.path(), Path::new(path)).unwrap();
        }
        assert!(dir.path().join("a/b").is_dir() && dir.path().join("d").is_dir());
        assert!(dir.path().join("a/hosts").is_file());
    }

    #[test]
    fn a_link_of_the_image_does_not_lead_out_of_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("run")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink("../../outside", root.join("up")).unwrap();
        symlink("/run", root.join("inside")).unwrap();
        for point in ["/link/file", "/up/file"] {
            let created = create_file_in_root(&root, Path::new(point));
            assert!(created.is_err(), "{point}");
        }
        create_dir_in_root(&root, Path::new("/inside/lock/x")).unwrap();
        assert!(root.join("run/lock/x").is_dir());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_link_of_proc_does_not_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let path = Path::new("/proc/self/root").join(path.strip_prefix("/").unwrap());
        assert!(create_dir_in_root(Path::new("/"), &path).is_err());
        assert!(create_file_in_root(Path::new("/"), &path).is_err());
        assert!(!dir.path().join("x").exists());
    }
}
