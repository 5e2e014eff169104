use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A tar stream to extract in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PutSpec {
    /// The directory, which is created if it is missing.
    pub path: PathBuf,
    /// Whether files that exist are replaced; true by default.
    pub overwrite: bool,
    /// Whether a `path` that is not a directory is a new name, which replaces the first component of
    /// all paths in the archive, as for `docker cp`; false by default.
    #[serde(default)]
    pub rename_root: bool,
}

impl PutSpec {
    /// Creates the spec of an archive that is extracted below a directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            overwrite: true,
            rename_root: false,
        }
    }

    /// Sets whether files that exist are replaced.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Sets whether a path that is not a directory is a new name.
    #[must_use]
    pub fn rename_root(mut self, rename_root: bool) -> Self {
        self.rename_root = rename_root;
        self
    }
}

/// Files of a guest to send as a tar stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GetSpec {
    /// The file, or the directory with all that is below it. The paths in the archive start with its
    /// last component; they are relative to the directory if `path` ends with `/.`.
    pub path: PathBuf,
    /// Whether the archive has the targets of symbolic links in place of the links; false by default.
    #[serde(default)]
    pub follow_symlinks: bool,
}

impl GetSpec {
    /// Creates the spec of a file or directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            follow_symlinks: false,
        }
    }

    /// Sets whether symbolic links are followed.
    #[must_use]
    pub fn follow_symlinks(mut self, follow: bool) -> Self {
        self.follow_symlinks = follow;
        self
    }
}
