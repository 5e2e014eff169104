use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat, renameat_with, syncfs};
use rustix::io::Errno;
use ulid::Ulid;
use vmm_protocol::{FileError, remove_tree, write_file};

use super::table::{parse, read_file};
use super::{Image, ImageError, ImageInfo};

/// The images that were built on this host: a directory with a subdirectory `NAME` for each.
///
/// `NAME/image.json` is the [`Image`], and beside it are the files that its boxes use. A subdirectory
/// appears, is replaced and disappears as a whole, also if a process is killed. A daemon that runs
/// sees a change at the next request, see [`ImageTable::with_store`](crate::ImageTable::with_store).
///
/// Boxes that run keep the files that they have opened when their image is replaced or removed. Their
/// next start opens the new files, or fails if the image is removed.
///
/// All methods block on the file system: in async code, call them with `spawn_blocking`.
///
/// ```
/// use vmm_runtime::{Image, ImageStore};
///
/// # let home = tempfile::tempdir()?;
/// let store = ImageStore::new(home.path().join("images"));
/// let staged = store.stage("greeter")?;
/// std::fs::write(staged.dir().join("script"), "echo hello")?;
/// let script = staged.image_dir().join("script");
/// staged.commit(&Image::command(["sh", script.to_str().unwrap()]))?;
/// assert_eq!(store.list()?[0].name, "greeter");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: PathBuf,
}

/// The file of a subdirectory that describes the image.
const IMAGE_FILE: &str = "image.json";

const MAX_NAME: usize = 128;

impl ImageStore {
    /// Creates a store in this directory, which [`stage`](Self::stage) creates if needed.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Begins to make an image, or to replace the one of the same name. Removes what killed processes
    /// have left in the store.
    ///
    /// # Errors
    ///
    /// [`ImageError::InvalidName`], or [`ImageError::File`] if the directory cannot be created.
    pub fn stage(&self, name: &str) -> Result<StagedImage, ImageError> {
        if !is_valid(name) {
            let name = name.to_owned();
            return Err(ImageError::InvalidName { name });
        }
        create_private(&self.dir, true).map_err(file_error("create", &self.dir))?;
        // The paths in an image are absolute.
        let store = fs::canonicalize(&self.dir).map_err(file_error("read", &self.dir))?;
        remove_leftovers(&store);
        loop {
            let dir = hidden(&store);
            create_private(&dir, false).map_err(file_error("create", &dir))?;
            let lock = Lock::acquire(&dir).map_err(file_error("lock", &dir))?;
            if let Some(lock) = lock {
                return Ok(StagedImage {
                    image_dir: store.join(name),
                    dir,
                    lock,
                });
            }
        }
    }

    /// Returns the image of this name.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<ImageInfo>, ImageError> {
        if !is_valid(name) {
            return Ok(None);
        }
        let dir = self.dir.join(name);
        let path = dir.join(IMAGE_FILE);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(file_error("read", &path)(error)),
        };
        let image = match read_file(&path, OsStr::new(name)) {
            Ok((_, image)) => image,
            // Removed, or replaced, meanwhile.
            Err(ImageError::File(error)) if is_missing(&error.source) => return Ok(None),
            Err(error) => return Err(error),
        };
        let modified = metadata.modified().map_err(file_error("read", &path))?;
        Ok(Some(ImageInfo {
            name: name.to_owned(),
            image,
            created_at: Timestamp::try_from(modified).unwrap_or_default(),
            size_bytes: Some(size_of(&dir).map_err(file_error("read", &dir))?),
        }))
    }

    /// Returns all images, sorted by name. A subdirectory without `image.json` is not an image.
    ///
    /// # Errors
    ///
    /// [`ImageError`] for the first image that cannot be read.
    pub fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let mut images = Vec::new();
        for name in names(&self.dir).map_err(file_error("read", &self.dir))? {
            images.extend(self.get(&name)?);
        }
        images.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// Removes an image, also one that is damaged.
    ///
    /// # Errors
    ///
    /// [`ImageError::NotFound`], or [`ImageError::File`].
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let not_found = || ImageError::NotFound {
            name: name.to_owned(),
        };
        if !is_valid(name) {
            return Err(not_found());
        }
        let dir = self.dir.join(name);
        let removed = hidden(&self.dir);
        match renameat(CWD, &dir, CWD, &removed) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Err(not_found()),
            Err(error) => return Err(file_error("remove", &dir)(error.into())),
        }
        remove_tree(&removed, || false)?;
        Ok(())
    }
}

/// An image of an [`ImageStore`] that is being made. Dropping it removes its files.
#[derive(Debug)]
pub struct StagedImage {
    dir: PathBuf,
    image_dir: PathBuf,
    /// Shows other processes that the directory is in use.
    lock: Lock,
}

impl StagedImage {
    /// Returns the directory for the files of the image, until [`commit`](Self::commit).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the directory of the files after [`commit`](Self::commit), for the paths in an image.
    pub fn image_dir(&self) -> &Path {
        &self.image_dir
    }

    /// Writes the image, syncs all files to disk, and makes the image visible in the store. Replaces
    /// the image of the same name.
    ///
    /// # Errors
    ///
    /// [`ImageError::Malformed`] for an image that no box can be created from, or
    /// [`ImageError::File`]. The store is then unchanged.
    pub fn commit(self, image: &Image) -> Result<(), ImageError> {
        let path = self.dir.join(IMAGE_FILE);
        let json = serde_json::to_vec_pretty(image)
            .map_err(|error| file_error("write", &path)(error.into()))?;
        // An image that cannot be read would be in the way of the others.
        parse(OsStr::new("image"), &json).map_err(|reason| ImageError::Malformed {
            path: path.clone(),
            reason,
        })?;
        write_file(&path, &json)?;
        let failed = |error: Errno| file_error("replace", &self.image_dir)(error.into());
        syncfs(&self.lock.dir).map_err(failed)?;
        // Afterwards `dir` has the old image, which is removed with this value.
        let exchanged = rename(&self.dir, &self.image_dir, RenameFlags::EXCHANGE);
        let result = match exchanged {
            Err(Errno::NOENT) => rename(&self.dir, &self.image_dir, RenameFlags::NOREPLACE),
            result => result,
        };
        result.map_err(failed)
    }
}

impl Drop for StagedImage {
    fn drop(&mut self) {
        // The next process that stages an image removes what is left.
        let _ = remove_tree(&self.dir, || false);
    }
}

/// A lock on a directory, which ends with the process that holds it.
#[derive(Debug)]
struct Lock {
    dir: File,
}

impl Lock {
    /// Locks a directory. Returns `None` if another process has locked or removed it.
    fn acquire(dir: &Path) -> io::Result<Option<Self>> {
        let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
        let mut options = OpenOptions::new();
        let file = match options.read(true).custom_flags(flags).open(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        let is_removed = match fs::metadata(dir) {
            Ok(found) => found.ino() != file.metadata()?.ino(),
            Err(_) => true,
        };
        Ok((!is_removed).then_some(Self { dir: file }))
    }
}

/// Returns whether the text is a file name that is safe in paths, and is not one of the hidden names of
/// the store.
fn is_valid(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    (1..=MAX_NAME).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(is_allowed)
}

/// Returns a new hidden name in the store.
fn hidden(store: &Path) -> PathBuf {
    store.join(format!(".{}", Ulid::generate()))
}

/// Removes the hidden directories that no process has locked.
fn remove_leftovers(store: &Path) {
    for entry in fs::read_dir(store).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".")
            && let Ok(Some(_lock)) = Lock::acquire(&path)
        {
            let _ = remove_tree(&path, || false);
        }
    }
}

/// Returns the valid names in the store, which need not exist.
fn names(store: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(store) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        result => result?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(
            entry?
                .file_name()
                .into_string()
                .ok()
                .filter(|name| is_valid(name)),
        );
    }
    Ok(names)
}

/// Returns the space on the disk that the files of an image take.
fn size_of(dir: &Path) -> io::Result<u64> {
    const BLOCK: u64 = 512;
    let mut blocks = 0;
    for entry in fs::read_dir(dir)? {
        blocks += entry?.metadata()?.blocks();
    }
    Ok(blocks * BLOCK)
}

fn create_private(dir: &Path, with_parents: bool) -> io::Result<()> {
    DirBuilder::new()
        .recursive(with_parents)
        .mode(0o700)
        .create(dir)
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, from, CWD, to, flags)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn file_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ImageError + 'a {
    move |source| ImageError::File(FileError::new(action, path, source))
}

#[cfg(test)]
mod tests;
