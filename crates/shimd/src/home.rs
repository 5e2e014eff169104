use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The directory of a daemon: its boxes, and the socket at which it is reached.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    path: PathBuf,
    beats_url: bool,
}

impl Home {
    /// The given one, or the user's.
    pub(crate) fn at(given: Option<PathBuf>, beats_url: bool) -> Result<Self, Failure> {
        let default = || match rustix::process::geteuid().is_root() {
            true => Some(PathBuf::from("/var/lib/shimd")),
            false => of_user(env::var_os("XDG_STATE_HOME"), env::var_os("HOME")),
        };
        let path = given.or_else(default).ok_or(Failure::NoHome)?;
        Ok(Self { path, beats_url })
    }

    /// Whether it is an argument, which comes before a URL of the environment.
    pub(crate) fn beats_url(&self) -> bool {
        self.beats_url
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("shimd.sock")
    }

    pub(crate) fn box_dir(&self, id: &str) -> PathBuf {
        self.path.join("boxes").join(id)
    }
}

/// As the XDG Base Directory Specification says, which has relative paths ignored.
fn of_user(state: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |dir: Option<OsString>| dir.map(PathBuf::from).filter(|dir| dir.is_absolute());
    absolute(state)
        .or_else(|| Some(absolute(home)?.join(".local/state")))
        .map(|dir| dir.join("shimd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_home_is_where_xdg_has_it() {
        let dir = |state: Option<&str>, home: Option<&str>| {
            of_user(state.map(Into::into), home.map(Into::into))
        };
        assert_eq!(dir(Some("/s"), Some("/h")), Some("/s/shimd".into()));
        let usual = Some(PathBuf::from("/h/.local/state/shimd"));
        assert_eq!(dir(None, Some("/h")), usual);
        assert_eq!(dir(Some("relative"), Some("/h")), usual);
        assert_eq!(dir(None, None), None);
        assert_eq!(dir(None, Some("")), None);
    }
}
