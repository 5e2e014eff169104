//! The stdin and stdout of a shim, which connect it to its runtime. No child may inherit them. The
//! functions of std would allocate a buffer for each.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

use nix::unistd::{dup2_stdin, dup2_stdout};
use rustix::stdio::{stdin, stdout};

/// Returns true unless stdin is a device or stdout is a terminal. A person or a shell script has
/// started the process then.
pub(crate) fn spawned_by_runtime() -> bool {
    let stdin = stdin().try_clone_to_owned().map(File::from);
    let is_device = stdin
        .and_then(|stdin| stdin.metadata())
        .is_ok_and(|metadata| metadata.file_type().is_char_device());
    !is_device && !stdout().is_terminal()
}

/// Returns stdin as a close-on-exec file descriptor, and replaces it with `/dev/null`.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let stdin = stdin().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(stdin)
}

/// Returns stdout as a close-on-exec file descriptor, and replaces it with `/dev/null`.
pub(crate) fn take_stdout() -> io::Result<OwnedFd> {
    let stdout = stdout().try_clone_to_owned()?;
    dup2_stdout(OpenOptions::new().write(true).open("/dev/null")?)?;
    Ok(stdout)
}
