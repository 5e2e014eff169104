//! File descriptors of processes, `pidfd_open(2)`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FsWord, fstatfs};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::poll::wait_until;

/// Opens a pidfd. Returns `None` if the kernel has no pidfds (before Linux 5.3), or a sandbox
/// forbids them.
///
/// # Errors
///
/// `ESRCH` if no process has this pid, or the error of the system call.
pub fn open(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = pid.try_into().ok().and_then(Pid::from_raw);
    match pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        // It is the id of a thread: EINVAL in pidfd_open(2), ENOENT on newer kernels.
        Err(Errno::INVAL | Errno::NOENT) => Err(Errno::SRCH.into()),
        Err(Errno::NOSYS | Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Blocks until the process has exited, or the deadline is over. Returns whether it has exited.
///
/// # Errors
///
/// The error of `ppoll(2)`.
pub fn wait_exited(pidfd: impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        wait_until(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(deadline))?;
        let has_exited = has_exited(&pidfd);
        if has_exited || deadline <= Instant::now() {
            return Ok(has_exited);
        }
    }
}

/// Returns true if the process has exited. A pidfd becomes readable at the exit of its process, and
/// stays readable after the process is reaped.
pub fn has_exited(pidfd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Returns the inode number, which is unique until the next reboot; `None` before Linux 6.9.
pub(crate) fn inode(pidfd: OwnedFd) -> Option<u64> {
    /// Before Linux 6.9, all pidfds share one inode of another file system.
    const PIDFS_MAGIC: FsWord = 0x5049_4446;
    if fstatfs(&pidfd).ok()?.f_type != PIDFS_MAGIC {
        return None;
    }
    File::from(pidfd).metadata().ok().map(|file| file.ino())
}
