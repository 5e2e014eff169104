use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vmm_runtime::ImageStore;
use vmm_shim::BoxDir;

use crate::failure::Failure;

/// The directory of a daemon, with its boxes and its socket.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    path: PathBuf,
    overrides_url: bool,
}

impl Home {
    /// Creates a home at `path`, or at the default directory of the user.
    pub(crate) fn new(path: Option<PathBuf>, overrides_url: bool) -> Result<Self, Failure> {
        let default = || {
            if rustix::process::geteuid().is_root() {
                Some(PathBuf::from("/var/lib/shimd"))
            } else {
                user_home(env::var_os("XDG_STATE_HOME"), env::var_os("HOME"))
            }
        };
        let path = path.or_else(default).ok_or(Failure::NoHome)?;
        Ok(Self {
            path,
            overrides_url,
        })
    }

    /// Returns true if commands use this home although the environment has a URL.
    pub(crate) fn overrides_url(&self) -> bool {
        self.overrides_url
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("shimd.sock")
    }

    /// Returns the images that `shimd image build` makes.
    pub(crate) fn images(&self) -> ImageStore {
        ImageStore::new(self.path.join("images"))
    }

    /// Returns the directory of the box with this id.
    pub(crate) fn box_dir(&self, id: &str) -> BoxDir {
        BoxDir::new(self.path.join("boxes").join(id))
    }
}

/// Returns the default home of a user. The XDG Base Directory Specification requires that relative
/// paths are ignored.
fn user_home(state: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |dir: Option<OsString>| dir.map(PathBuf::from).filter(|dir| dir.is_absolute());
    absolute(state)
        .or_else(|| Some(absolute(home)?.join(".local/state")))
        .map(|dir| dir.join("shimd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_home_follows_the_xdg_specification() {
        let dir = |state: Option<&str>, home: Option<&str>| {
            user_home(state.map(Into::into), home.map(Into::into))
        };
        assert_eq!(dir(Some("/s"), Some("/h")), Some("/s/shimd".into()));
        let fallback = Some(PathBuf::from("/h/.local/state/shimd"));
        assert_eq!(dir(None, Some("/h")), fallback);
        assert_eq!(dir(Some("relative"), Some("/h")), fallback);
        assert_eq!(dir(None, None), None);
        assert_eq!(dir(None, Some("")), None);
    }
}
