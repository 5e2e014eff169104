use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::sys;

/// A copy of a mount that belongs to no mount namespace, `open_tree(2)`. No process can reach it by a path until it
/// is attached, so no process sees it before it is read-only. It ends with its last descriptor.
///
/// Needs `CAP_SYS_ADMIN`, and Linux 5.12 for its settings.
///
/// ```no_run
/// use vmm_engine::{DetachedMount, MountPropagation};
///
/// let mount = DetachedMount::copy_all("/srv/data".as_ref())?;
/// mount.set_propagation(MountPropagation::Private)?;
/// mount.set_read_only()?;
/// mount.attach("/mnt".as_ref())?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct DetachedMount(OwnedFd);

/// What a copy of a mount receives of later mounts and unmounts, `mount_namespaces(7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MountPropagation {
    /// It receives none, and sends none.
    Private,
    /// It receives those of the original, and sends none.
    Receive,
}

impl DetachedMount {
    /// Copies the mount of a file or directory, without the mounts below it. Its propagation is that of the original.
    ///
    /// # Errors
    ///
    /// If the path does not exist, or the mount cannot be copied.
    pub fn copy(path: &Path) -> io::Result<Self> {
        Self::open(path, OpenTreeFlags::empty())
    }

    /// Copies the mount of a file or directory with all mounts below it.
    ///
    /// # Errors
    ///
    /// Those of [`copy`](Self::copy).
    pub fn copy_all(path: &Path) -> io::Result<Self> {
        Self::open(path, OpenTreeFlags::AT_RECURSIVE)
    }

    fn open(path: &Path, flags: OpenTreeFlags) -> io::Result<Self> {
        let flags = flags | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(Self(open_tree(CWD, path, flags)?))
    }

    /// Makes the copy and all mounts below it read-only.
    ///
    /// # Errors
    ///
    /// The error of `mount_setattr(2)`.
    pub fn set_read_only(&self) -> io::Result<()> {
        sys::set_read_only(self)
    }

    /// Sets the propagation of the copy and of all mounts below it.
    ///
    /// # Errors
    ///
    /// The error of `mount_setattr(2)`.
    pub fn set_propagation(&self, propagation: MountPropagation) -> io::Result<()> {
        sys::set_propagation(self, propagation)
    }

    /// Mounts the copy on a file or directory. A path that is a symbolic link is not followed.
    ///
    /// # Errors
    ///
    /// The error of `move_mount(2)`.
    pub fn attach(self, target: &Path) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&self.0, "", CWD, target, flags)?)
    }
}

impl AsFd for DetachedMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<DetachedMount> for OwnedFd {
    fn from(mount: DetachedMount) -> Self {
        mount.0
    }
}
