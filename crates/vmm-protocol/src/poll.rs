//! Waits for file descriptors, `poll(2)`.

use std::io;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Blocks until a descriptor is ready, a signal arrives, or the deadline is over.
///
/// # Errors
///
/// The error of `ppoll(2)`.
pub fn wait_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // A deadline that no `timespec` can hold is never over.
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether a descriptor that was waited for has data, an error or a hang-up to read.
pub fn is_readable(fd: &PollFd<'_>) -> bool {
    let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
    fd.revents().intersects(readable)
}
