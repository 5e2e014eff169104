use std::path::PathBuf;

use vmm_protocol::FileError;

/// Why images could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file or directory cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not a valid image.
    #[error("{} is not a valid image: {reason}; correct it, or move it out of the folder", path.display())]
    Malformed {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with the file, and where.
        reason: String,
    },
    /// Two files define an image of the same name.
    #[error("{} defines the image {name:?} a second time; rename one of them", path.display())]
    Duplicate {
        /// The path of the second file.
        path: PathBuf,
        /// The name of the image.
        name: String,
    },
    /// The name cannot be that of an image in a store.
    #[error(
        "{name:?} cannot be the name of an image; use up to 128 letters, digits and '.', '_', '-', ':', \
         and begin with a letter or a digit"
    )]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The store has no image of this name.
    #[error("image {name:?} not found; `shimd image ls` lists the images")]
    NotFound {
        /// The name.
        name: String,
    },
}
