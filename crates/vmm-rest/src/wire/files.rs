use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

/// The query of a request that extracts an archive in a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[non_exhaustive]
pub struct PutFilesQuery {
    /// The directory in the guest, an absolute path. It is created if it is missing.
    #[param(pattern = r"^/[^\x00]*$", example = "/app")]
    pub path: String,
    /// Whether files that exist are replaced.
    #[serde(default = "overwrite_by_default")]
    #[param(default = true, required = false)]
    pub overwrite: bool,
    /// Whether the archive was made of a directory, for a copy as `docker cp` does it: a path that is
    /// not a directory is then a new name. Clients of the public API send it; its document does not
    /// have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(ignore)]
    pub source_is_dir: Option<bool>,
}

fn overwrite_by_default() -> bool {
    true
}

impl PutFilesQuery {
    /// Creates the query of an archive that is extracted below a directory.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            overwrite: true,
            source_is_dir: None,
        }
    }

    /// Sets whether files that exist are replaced.
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Copies as `docker cp` does, and sets whether the source is a directory.
    #[must_use]
    pub fn copy_of(mut self, source_is_dir: bool) -> Self {
        self.source_is_dir = Some(source_is_dir);
        self
    }
}

/// The query of a request for files in a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[non_exhaustive]
pub struct GetFilesQuery {
    /// The file or directory in the guest, an absolute path. If it ends with `/.`, the archive has
    /// the contents of the directory.
    #[param(pattern = r"^/[^\x00]*$", example = "/app/output")]
    pub path: String,
    /// Whether the archive has the targets of symbolic links in place of the links.
    #[serde(default)]
    #[param(default = false, required = false)]
    pub follow_symlinks: bool,
}

impl GetFilesQuery {
    /// Creates the query of a file or directory.
    pub fn new(path: impl Into<String>) -> Self {
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
