use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The directory of a daemon: its boxes, and the socket at which it is reached.
#[derive(Clone, Debug)]
pub(crate) struct Home(PathBuf);

impl Home {
    /// The given one, or the user's.
    pub(crate) fn at(given: Option<PathBuf>) -> Result<Self, Failure> {
        let default = || match rustix::process::geteuid().is_root() {
            true => Some(PathBuf::from("/var/lib/shimd")),
            false => of_user(env::var_os("XDG_STATE_HOME"), env::var_os("HOME")),
        };
        given.or_else(default).map(Self).ok_or(Failure::NoHome)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("shimd.sock")
    }

    /// What a box prints.
    pub(crate) fn console(&self, id: &str) -> PathBuf {
        self.0.join("boxes").join(id).join(vmm_shim::FILES.console)
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
