use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{getegid, geteuid};
use tokio_util::sync::CancellationToken;
use vmm_protocol::{BoxDir, FileError, procfs, sync_parent_directory};

use crate::{BoxId, RuntimeError};

/// Prefixes of directories that are not complete boxes: being created, or being removed. No box id
/// begins with a dot.
const CREATING_PREFIX: &str = ".creating-";
const REMOVING_PREFIX: &str = ".removing-";

/// The reserve has one inode for so many bytes: mkfs.ext4 creates that many by default.
const BYTES_PER_INODE: u64 = 16 << 10;

/// Bits of a file mode.
const WRITE_BY_GROUP: u32 = 0o020;
const WRITE_BY_OTHERS: u32 = 0o002;
/// Only the owner of an entry can replace it.
const STICKY: u32 = 0o1000;

/// The directory tree of a runtime: the file `lock`, and one directory per box under `boxes`.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    root: PathBuf,
}

/// The homes of dropped runtimes of this process that have not finished yet. Static, because it
/// must outlive the runtimes: the next [`Home::wait_released`] reads it.
static CLOSING_HOMES: Mutex<Vec<(PathBuf, CancellationToken)>> = Mutex::new(Vec::new());

/// A guard that keeps a home in [`CLOSING_HOMES`].
#[derive(Debug)]
pub(crate) struct ClosingHome {
    root: PathBuf,
    released: CancellationToken,
}

impl Drop for ClosingHome {
    fn drop(&mut self) {
        let mut homes = CLOSING_HOMES.lock().unwrap_or_else(PoisonError::into_inner);
        homes.retain(|(root, _)| *root != self.root);
        self.released.cancel();
    }
}

/// The homes that runtimes of this process have locked.
static LOCKED_HOMES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// How long to wait for a lock whose holder has died: a child that it was spawning holds the
/// descriptor until it executes its program.
const LOCK_RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The exclusive lock of a [`Home`]. Dropping it unlocks the home.
#[derive(Debug)]
pub(crate) struct HomeLock {
    file: File,
    root: PathBuf,
    /// The pid of the process that took the lock. A forked child has a copy of this value but does
    /// not own the lock.
    owner: u32,
}

impl HomeLock {
    /// Registers a lock that this process has just taken.
    fn new(file: File, root: &Path) -> Self {
        locked_homes().push(root.to_owned());
        Self {
            file,
            root: root.to_owned(),
            owner: process::id(),
        }
    }
}

impl Drop for HomeLock {
    fn drop(&mut self) {
        if self.owner != process::id() {
            return;
        }
        locked_homes().retain(|root| *root != self.root);
        // Closing the file is not enough: a child between its fork and its exec also has the
        // descriptor.
        let _ = self.file.unlock();
    }
}

/// Locks the list of locked homes.
fn locked_homes() -> MutexGuard<'static, Vec<PathBuf>> {
    LOCKED_HOMES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Home {
    /// Creates the missing directories of a home and locks it. Fails if less than `reserve` is free on
    /// the disk.
    pub(crate) fn open(root: &Path, reserve: u64) -> Result<(Self, HomeLock), RuntimeError> {
        let to_error = |source| FileError::new("create the directory", root, source);
        create_private_dir(root).map_err(to_error)?;
        // No symbolic links: the path is compared with the current directories of shims.
        let home = Self {
            root: root.canonicalize().map_err(to_error)?,
        };
        // After the creation, because any user could have created it before.
        home.check()?;
        // Before the lock, whose file needs an inode.
        home.check_free_space(reserve)?;
        let lock = home.lock()?;
        create_private_dir(&home.boxes())
            .map_err(|source| FileError::new("create the directory", home.boxes(), source))?;
        Ok((home, lock))
    }

    /// Returns an error if another user could change the contents of the home or replace the home
    /// itself.
    fn check(&self) -> Result<(), RuntimeError> {
        let found = open_dir(&self.root)
            .and_then(|dir| dir.metadata())
            .map_err(|source| FileError::new("open", &self.root, source))?;
        if found.uid() != geteuid().as_raw() {
            return Err(RuntimeError::HomeOfAnother {
                home: self.root.clone(),
                owner: found.uid(),
            });
        }
        let others_write = |path: &Path| RuntimeError::OpenHome {
            home: self.root.clone(),
            path: path.to_owned(),
        };
        if found.mode() & (WRITE_BY_GROUP | WRITE_BY_OTHERS) != 0 {
            return Err(others_write(&self.root));
        }
        for parent in self.root.ancestors().skip(1) {
            let found = fs::symlink_metadata(parent)
                .map_err(|source| FileError::new("inspect", parent, source))?;
            // Root owns the directories that lead to the homes of all users.
            let is_trusted = found.uid() == 0 || found.uid() == geteuid().as_raw();
            let is_writable = found.mode() & WRITE_BY_OTHERS != 0
                || found.mode() & WRITE_BY_GROUP != 0 && found.gid() != getegid().as_raw();
            if !is_trusted || is_writable && found.mode() & STICKY == 0 {
                return Err(others_write(parent));
            }
        }
        Ok(())
    }

    /// Locks the home. Waits for a lock whose holder has died.
    fn lock(&self) -> Result<HomeLock, RuntimeError> {
        let path = self.root.join("lock");
        let to_error = |source| FileError::new("lock", &path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(to_error)?;
        let deadline = Instant::now() + LOCK_RELEASE_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let holder = lock_holder(&file).filter(|pid| self.may_be_held_by(*pid));
                    if holder.is_some() || Instant::now() >= deadline {
                        return Err(RuntimeError::Locked {
                            home: self.root.clone(),
                            holder,
                        });
                    }
                    thread::sleep(POLL_INTERVAL);
                }
                Err(TryLockError::Error(error)) => return Err(to_error(error).into()),
            }
        }
        // Only the error message of a second opener needs the pid, so a full disk is not an error.
        if let Err(error) = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", process::id()))
        {
            tracing::warn!(path = %path.display(), %error, "cannot write the holder to the lock file");
        }
        Ok(HomeLock::new(file, &self.root))
    }

    /// Returns whether the process `pid`, which the lock file names, can hold the lock.
    fn may_be_held_by(&self, pid: u32) -> bool {
        if pid == process::id() {
            return locked_homes().contains(&self.root);
        }
        procfs::exists(pid) && !procfs::is_zombie(pid)
    }

    /// Makes [`wait_released`](Self::wait_released) wait for this home until the guard is dropped.
    pub(crate) fn mark_closing(&self) -> ClosingHome {
        let released = CancellationToken::new();
        let mut homes = CLOSING_HOMES.lock().unwrap_or_else(PoisonError::into_inner);
        homes.push((self.root.clone(), released.clone()));
        ClosingHome {
            root: self.root.clone(),
            released,
        }
    }

    /// Waits while a dropped runtime of this process still uses this home.
    pub(crate) async fn wait_released(root: &Path) {
        let released = {
            let homes = CLOSING_HOMES.lock().unwrap_or_else(PoisonError::into_inner);
            let root = root.canonicalize().unwrap_or_default();
            homes
                .iter()
                .find(|(home, _)| *home == root)
                .map(|(_, released)| released.clone())
        };
        if let Some(released) = released {
            released.cancelled().await;
        }
    }

    /// Fails if less than `reserve` bytes, or inodes for them, are free on the disk.
    pub(crate) fn check_free_space(&self, reserve: u64) -> Result<(), RuntimeError> {
        if reserve == 0 {
            return Ok(());
        }
        let disk = rustix::fs::statvfs(&self.root)
            .map_err(|error| FileError::new("inspect the disk of", &self.root, error.into()))?;
        let home = self.root.clone();
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < reserve {
            return Err(RuntimeError::DiskFull {
                home,
                free,
                reserve,
            });
        }
        let (free, reserve) = (disk.f_favail, reserve / BYTES_PER_INODE);
        // Some file systems, such as btrfs, create inodes as long as there is space.
        let has_limit = disk.f_files > 0;
        if has_limit && free < reserve {
            return Err(RuntimeError::OutOfInodes {
                home,
                free,
                reserve,
            });
        }
        Ok(())
    }

    /// Returns the directory of the boxes.
    pub(crate) fn boxes(&self) -> PathBuf {
        self.root.join("boxes")
    }

    /// Returns the directory in which engines keep what they know of the host.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Returns the directory of a box.
    pub(crate) fn box_dir(&self, id: &str) -> BoxDir {
        BoxDir::new(self.boxes().join(id))
    }

    /// Creates the directory of a new box. It appears complete or not at all.
    pub(crate) fn create_box(
        &self,
        id: &str,
        fill: impl FnOnce(&BoxDir) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let partial = self.boxes().join(format!("{CREATING_PREFIX}{id}"));
        let dir = self.boxes().join(id);
        let result = DirBuilder::new()
            .mode(0o700)
            .create(&partial)
            .map_err(|source| FileError::new("create the directory", &partial, source))
            .and_then(|()| fill(&BoxDir::new(&partial)))
            .and_then(|()| {
                fs::rename(&partial, &dir)
                    .and_then(|()| sync_parent_directory(&dir))
                    .map_err(|source| FileError::new("create the directory", &dir, source))
            });
        if result.is_err() {
            // First, so that a kill leaves no part of a box under its name.
            let _ = fs::rename(&dir, &partial);
            // No payload has written to it, so it is small.
            let _ = fs::remove_dir_all(&partial);
        }
        result
    }

    /// Renames the directory of a box to a name that marks it for removal, and returns the new
    /// path. The new name is on disk when this returns. Returns `None` if the directory does not
    /// exist.
    pub(crate) fn set_aside(&self, id: &str) -> Result<Option<PathBuf>, FileError> {
        let dir = self.boxes().join(id);
        let remnant = self.boxes().join(format!("{REMOVING_PREFIX}{id}"));
        let renamed = match fs::rename(&dir, &remnant) {
            // An earlier attempt renamed it and then failed to sync, or the user removed it by hand.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        };
        renamed
            .and_then(|()| sync_parent_directory(&dir))
            .map_err(|source| FileError::new("remove", &dir, source))?;
        Ok(remnant.exists().then_some(remnant))
    }

    /// Lists the boxes and the remnants that earlier runtimes left.
    pub(crate) fn contents(&self) -> Result<Contents, FileError> {
        let boxes = self.boxes();
        let to_error = |source| FileError::new("list", &boxes, source);
        let mut contents = Contents::default();
        for entry in fs::read_dir(&boxes).map_err(to_error)? {
            let entry = entry.map_err(to_error)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(CREATING_PREFIX) || name.starts_with(REMOVING_PREFIX) {
                contents.remnants.push(entry.path());
            } else if let Ok(id) = name.parse()
                && entry.path().is_dir()
            {
                contents.boxes.push(id);
            }
        }
        contents.boxes.sort_unstable();
        Ok(contents)
    }
}

/// The contents of a [`Home`].
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The ids of all boxes, intact or damaged, in order.
    pub(crate) boxes: Vec<BoxId>,
    /// Directories that were being created or removed.
    pub(crate) remnants: Vec<PathBuf>,
}

/// Returns the pid that the lock file names.
fn lock_holder(lock: &File) -> Option<u32> {
    let mut text = [0; 16];
    let length = lock.read_at(&mut text, 0).ok()?;
    str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
}

/// Opens a directory without following a symbolic link.
fn open_dir(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(File::from(dir))
}

/// Creates a directory and its missing parents, accessible to the owner only, and syncs their names
/// to disk.
fn create_private_dir(dir: &Path) -> io::Result<()> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<_> = dir.ancestors().skip(1).take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // That of `dir` also if it exists: the process that created it may have been killed.
    for created in missing.into_iter().chain([dir]) {
        match sync_parent_directory(created) {
            // This user cannot have created anything there.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    }
    Ok(())
}
