//! Removes the files of a run whose shim was killed at a moment at which they had names.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::{files, shares};
use crate::EngineError;

/// How the names of temporary overlays begin, on a file system that cannot create a file without a name.
const TEMPORARY_PREFIX: &[u8] = b".tmp";

/// Removes the socket of a virtiofsd, which has a name until QEMU is connected, and temporary
/// overlays. No process of the run is left.
pub(super) fn remove_files(dir: &Path) -> Result<(), EngineError> {
    let remove = || -> rustix::io::Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match openat(CWD, dir, flags, Mode::empty()) {
            // The box is removed.
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        };
        accept_missing(unlinkat(&dir, shares::SOCKET, AtFlags::empty()))?;
        let overlays = match openat(&dir, files::OVERLAYS, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        };
        for entry in Dir::read_from(&overlays)? {
            let entry = entry?;
            if entry.file_name().to_bytes().starts_with(TEMPORARY_PREFIX) {
                accept_missing(unlinkat(&overlays, entry.file_name(), AtFlags::empty()))?;
            }
        }
        Ok(())
    };
    remove().map_err(|error| EngineError::system("remove the files of a guest")(error.into()))
}

fn accept_missing(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_the_temporary_files_of_a_run_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        remove_files(dir.path()).unwrap();
        remove_files(&dir.path().join("removed")).unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("overlays")).unwrap();
        let left = ["virtiofsd.sock", "overlays/.tmpaB3xyz"];
        let kept = ["box.json", "overlays/disk0.qcow2", "overlays/disk0.base"];
        for name in left.iter().chain(&kept) {
            fs::write(path(name), "").unwrap();
        }
        remove_files(dir.path()).unwrap();
        assert!(left.iter().all(|name| !path(name).exists()));
        assert!(kept.iter().all(|name| path(name).exists()));
    }

    #[test]
    fn a_symbolic_link_to_another_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let file = other.path().join(".tmp-of-another-box");
        fs::write(&file, "").unwrap();
        symlink(other.path(), dir.path().join("overlays")).unwrap();
        remove_files(dir.path()).unwrap_err();
        assert!(file.exists());
    }
}
