use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat, openat2};
use rustix::io::Errno;

/// Creates a mount point in a root file system, with its parents, unless it exists. Symbolic links are followed as a
/// process with this root follows them, so they do not lead out of it.
pub(crate) fn create(root: &Path, point: &Path, is_dir: bool) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(root, flags, Mode::empty())?;
    let names = point.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let names: Vec<_> = names.collect();
    let mut path = PathBuf::from(".");
    for (number, name) in names.iter().enumerate() {
        let parent = path.clone();
        path.push(name);
        match resolve(&root, &path) {
            Err(Errno::NOENT) => {}
            found => {
                found?;
                continue;
            }
        }
        let parent = resolve(&root, &parent)?;
        let is_last = number + 1 == names.len();
        if is_last && !is_dir {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&parent, *name, flags, Mode::from_raw_mode(0o644))?;
        } else {
            mkdirat(&parent, *name, Mode::from_raw_mode(0o755))?;
        }
    }
    Ok(())
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
    fn missing_mount_points_are_created_with_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), Path::new("/a/b"), true).unwrap();
        create(dir.path(), Path::new("/a/b"), true).unwrap();
        create(dir.path(), Path::new("/a/hosts"), false).unwrap();
        assert!(dir.path().join("a/b").is_dir());
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
            assert!(create(&root, Path::new(point), false).is_err(), "{point}");
        }
        create(&root, Path::new("/inside/lock/x"), true).unwrap();
        assert!(root.join("run/lock/x").is_dir());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
