use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use vmm_protocol::frames::TerminalSize;

/// Opens a pseudoterminal. Returns the end of the server and the end of the command.
pub(crate) fn open(size: TerminalSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let server = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&server)?;
    unlockpt(&server)?;
    let name = ptsname(&server, Vec::new())?;
    let command: File = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())))?;
    resize(&server, size)?;
    Ok((server, command.into()))
}

/// Sets the size of a pseudoterminal. The kernel sends SIGWINCH to its foreground process group.
pub(crate) fn resize(server: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(server, size)?)
}
