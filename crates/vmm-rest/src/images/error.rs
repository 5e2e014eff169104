use std::io;
use std::path::PathBuf;

/// Why the image table could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The folder or a file in it.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that is no image.
    #[error("{} is no image: {reason}; correct it, or move it out of the folder", path.display())]
    Malformed {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// Two files with the same name for an image.
    #[error("{} makes a second image {name:?}; rename one of them", path.display())]
    Twice {
        /// The second file.
        path: PathBuf,
        /// The name.
        name: String,
    },
}
