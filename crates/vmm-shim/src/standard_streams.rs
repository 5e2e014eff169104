//! A shim's stdin and stdout are lines to the runtime; nothing that it starts may inherit them.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use nix::unistd::{dup2_stdin, dup2_stdout};

/// False if a person, or a shell script, has started this process: then they are devices.
pub(crate) fn are_a_runtimes() -> bool {
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let is_device = stdin
        .and_then(|stdin| stdin.metadata())
        .is_ok_and(|stdin| stdin.file_type().is_char_device());
    !is_device && !io::stdout().is_terminal()
}

/// Moves stdin to a close-on-exec descriptor and leaves `/dev/null` in its place.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let taken = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(taken)
}

/// The same for stdout.
pub(crate) fn take_stdout() -> io::Result<OwnedFd> {
    let taken = io::stdout().as_fd().try_clone_to_owned()?;
    dup2_stdout(OpenOptions::new().write(true).open("/dev/null")?)?;
    Ok(taken)
}
