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
use vmm_protocol::FileError;

use crate::RuntimeError;
use crate::process::procfs;

/// What marks a box's directory that is not yet whole, or not any more. No id begins with a dot.
const CREATING: &str = ".creating-";
const REMOVING: &str = ".removing-";

/// Of a mode.
const WRITE_BY_GROUP: u32 = 0o020;
const WRITE_BY_OTHERS: u32 = 0o002;
/// Entries can be replaced by their owners only.
const STICKY: u32 = 0o1000;

/// The directory tree of a runtime: `lock`, and one directory per box under `boxes`.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    root: PathBuf,
}

/// The homes of runtimes of this process that nobody holds any more, and that are still being left.
static RETIRING: Mutex<Vec<(PathBuf, CancellationToken)>> = Mutex::new(Vec::new());

/// Kept as long as a home is being left.
#[derive(Debug)]
pub(crate) struct Retiring {
    root: PathBuf,
    left: CancellationToken,
}

impl Drop for Retiring {
    fn drop(&mut self) {
        let mut retiring = RETIRING.lock().unwrap_or_else(PoisonError::into_inner);
        retiring.retain(|(root, _)| *root != self.root);
        self.left.cancel();
    }
}

/// The homes that runtimes of this process have.
static LOCKED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// How long a lock may stay when its holder has died: a child that it was starting has the
/// descriptor until it executes its program.
const RELEASED_WITHIN: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The right to change what is in a [`Home`]; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct HomeLock {
    file: File,
    root: PathBuf,
    /// The process that has taken it. A forked child has a copy, but not the right.
    owner: u32,
}

impl HomeLock {
    fn new(file: File, root: &Path) -> Self {
        locked().push(root.to_owned());
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
        locked().retain(|root| *root != self.root);
        // Closing is not enough: a child between its fork and its exec has the descriptor, too.
        let _ = self.file.unlock();
    }
}

fn locked() -> MutexGuard<'static, Vec<PathBuf>> {
    LOCKED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Home {
    /// Makes what is missing of it and takes its lock.
    pub(crate) fn open(root: &Path) -> Result<(Self, HomeLock), RuntimeError> {
        let failed = |source| FileError::new("make the directory", root, source);
        make_private(root).map_err(failed)?;
        // A shim's current directory is compared with paths in here: no links.
        let home = Self {
            root: root.canonicalize().map_err(failed)?,
        };
        // Now, not before: until it exists, anybody may make it.
        home.check()?;
        let lock = home.lock()?;
        make_private(&home.boxes())
            .map_err(|source| FileError::new("make the directory", home.boxes(), source))?;
        Ok((home, lock))
    }

    /// Fails if another user could change what is in it, or put another directory in its place.
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
                .map_err(|source| FileError::new("look at", parent, source))?;
            // Root owns what leads to the homes of all users.
            let is_trusted = found.uid() == 0 || found.uid() == geteuid().as_raw();
            let is_writable = found.mode() & WRITE_BY_OTHERS != 0
                || found.mode() & WRITE_BY_GROUP != 0 && found.gid() != getegid().as_raw();
            if !is_trusted || is_writable && found.mode() & STICKY == 0 {
                return Err(others_write(parent));
            }
        }
        Ok(())
    }

    /// Waits for a lock whose holder has died.
    fn lock(&self) -> Result<HomeLock, RuntimeError> {
        let path = self.root.join("lock");
        let failed = |source| FileError::new("lock", &path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let deadline = Instant::now() + RELEASED_WITHIN;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let holder = holder_of(&file).filter(|pid| self.may_be_held_by(*pid));
                    if holder.is_some() || Instant::now() >= deadline {
                        return Err(RuntimeError::Locked {
                            home: self.root.clone(),
                            holder,
                        });
                    }
                    thread::sleep(POLL_INTERVAL);
                }
                Err(TryLockError::Error(error)) => return Err(failed(error).into()),
            }
        }
        // For the error message of a second opener, and no more: a full disk is no obstacle.
        if let Err(error) = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", process::id()))
        {
            tracing::warn!(path = %path.display(), %error, "the lock does not name its holder");
        }
        Ok(HomeLock::new(file, &self.root))
    }

    /// Whether this process, as the lock names it, can have the home.
    fn may_be_held_by(&self, pid: u32) -> bool {
        if pid == process::id() {
            return locked().contains(&self.root);
        }
        procfs::exists(pid) && !procfs::is_zombie(pid)
    }

    /// From now on who opens it [waits](Self::until_left) for the end of its runtime.
    pub(crate) fn retiring(&self) -> Retiring {
        let left = CancellationToken::new();
        let mut retiring = RETIRING.lock().unwrap_or_else(PoisonError::into_inner);
        retiring.push((self.root.clone(), left.clone()));
        Retiring {
            root: self.root.clone(),
            left,
        }
    }

    /// Returns at once unless a runtime of this process is about to leave it.
    pub(crate) async fn until_left(root: &Path) {
        let left = {
            let retiring = RETIRING.lock().unwrap_or_else(PoisonError::into_inner);
            let root = root.canonicalize().unwrap_or_default();
            let mut homes = retiring.iter();
            homes
                .find(|(home, _)| *home == root)
                .map(|(_, left)| left.clone())
        };
        if let Some(left) = left {
            left.cancelled().await;
        }
    }

    fn boxes(&self) -> PathBuf {
        self.root.join("boxes")
    }

    pub(crate) fn box_dir(&self, id: &str) -> PathBuf {
        self.boxes().join(id)
    }

    /// A directory for a new box that becomes visible as a whole, or not at all.
    pub(crate) fn create_box(
        &self,
        id: &str,
        fill: impl FnOnce(&Path) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let half_made = self.boxes().join(format!("{CREATING}{id}"));
        let dir = self.box_dir(id);
        let made = DirBuilder::new()
            .mode(0o700)
            .create(&half_made)
            .map_err(|source| FileError::new("make the directory", &half_made, source))
            .and_then(|()| fill(&half_made))
            .and_then(|()| {
                fs::rename(&half_made, &dir)
                    .and_then(|()| File::open(self.boxes())?.sync_all())
                    .map_err(|source| FileError::new("make the directory", &dir, source))
            });
        if made.is_err() {
            // No payload has been in there.
            let _ = fs::remove_dir_all(&half_made);
            let _ = fs::remove_dir_all(&dir);
        }
        made
    }

    /// Takes the directory of a box away, as a whole, and returns where it is to be removed: `None`
    /// if it is not there.
    pub(crate) fn set_aside(&self, id: &str) -> Result<Option<PathBuf>, FileError> {
        let dir = self.box_dir(id);
        let remnant = self.boxes().join(format!("{REMOVING}{id}"));
        match fs::rename(&dir, &remnant) {
            // By an earlier attempt, which then failed to sync; or by hand.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(remnant.exists().then_some(remnant));
            }
            renamed => renamed.and_then(|()| File::open(self.boxes())?.sync_all()),
        }
        .map_err(|source| FileError::new("remove", &dir, source))?;
        Ok(Some(remnant))
    }

    /// Lists what an earlier runtime has left.
    pub(crate) fn contents(&self) -> Result<Contents, FileError> {
        let boxes = self.boxes();
        let failed = |source| FileError::new("list", &boxes, source);
        let mut contents = Contents::default();
        for entry in fs::read_dir(&boxes).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(CREATING) || name.starts_with(REMOVING) {
                contents.remnants.push(entry.path());
            } else if !name.starts_with('.') && entry.path().is_dir() {
                contents.boxes.push(name);
            }
        }
        contents.boxes.sort_unstable();
        Ok(contents)
    }
}

/// What is in a [`Home`].
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The ids of all boxes, whole or damaged, in order.
    pub(crate) boxes: Vec<String>,
    /// What was half made or half removed.
    pub(crate) remnants: Vec<PathBuf>,
}

/// The process that a lock names.
fn holder_of(lock: &File) -> Option<u32> {
    let mut text = [0; 16];
    let length = lock.read_at(&mut text, 0).ok()?;
    str::from_utf8(&text[..length]).ok()?.trim().parse().ok()
}

/// Not through a link.
fn open_dir(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    Ok(File::from(dir))
}

fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
