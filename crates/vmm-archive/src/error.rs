use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why an archive could not be created or extracted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The file or directory does not exist.
    #[error("{} not found", .0.display())]
    NotFound(PathBuf),
    /// The path is a file, and the operation needs a directory.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The file exists, and is not to be replaced; or a directory would be replaced by a file.
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
    /// The path of an entry leads out of the destination, by `..` or a symbolic link.
    #[error("the archive has the path {}, which leads out of the destination", .0.display())]
    Escapes(PathBuf),
    /// The archive is not a tar archive, ends early, or has an entry that cannot be extracted.
    #[error("the archive is not valid: {0}")]
    Invalid(String),
    /// The archive cannot be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

impl ArchiveError {
    /// Returns a function that converts the error of a system call for this path.
    pub(crate) fn of<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl Fn(E) -> Self {
        move |error| {
            let source = error.into();
            let path = path.to_owned();
            match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOENT) => Self::NotFound(path),
                Some(Errno::NOTDIR) => Self::NotADirectory(path),
                Some(Errno::EXIST | Errno::ISDIR) => Self::Exists(path),
                _ => Self::File {
                    action,
                    path,
                    source,
                },
            }
        }
    }
}
