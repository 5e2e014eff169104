use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;

use super::wait::{WaitFor, waitid};

/// A child that executes its program.
pub(crate) struct Born {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Blocking,
    NonBlocking,
}

/// Opens a pidfd, which is close-on-exec: `pidfd_open(2)`, Linux 5.3. Async-signal-safe.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and touches no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor, whose number fits into an int, and no other
    // code has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as _) })
}

/// Sends a signal: `pidfd_send_signal(2)`, Linux 5.1. Signal 0 only checks that the process has not been
/// reaped.
pub fn pidfd_send_signal(
    pidfd: BorrowedFd<'_>,
    signal: i32,
    flags: libc::c_uint,
) -> io::Result<()> {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: with a null siginfo pointer the kernel fills it in as kill(2) does.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            no_info,
            flags,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reaps a child and returns its exit status. A non-blocking wait returns `None` if the child has not
/// exited, and while another wait reaps it.
pub(crate) fn wait(pidfd: BorrowedFd<'_>, wait: Wait) -> io::Result<Option<ExitStatus>> {
    let flags = match wait {
        Wait::Blocking => 0,
        Wait::NonBlocking => libc::WNOHANG,
    };
    match waitid(WaitFor::Pidfd(pidfd), flags) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
            status_from_another_wait(pidfd, wait).map_err(|Unknown| error)
        }
        result => Ok(result?.map(|(status, _)| status)),
    }
}

/// Reaps a child that is about to exit, whether or not another wait does so first.
pub(super) fn reap(pidfd: &OwnedFd) {
    // It fails with ECHILD if another wait or the kernel has reaped the child.
    let _ = waitid(WaitFor::Pidfd(pidfd.as_fd()), 0);
}

/// Reaps a child that has no pidfd.
pub(super) fn reap_pid(pid: u32) {
    let _ = waitid(WaitFor::Pid(pid), 0);
}

/// The kernel cannot report the status of a child that another wait has reaped.
struct Unknown;

/// Returns the exit status of a child that this process can no longer wait for: another wait has
/// reaped it, or is about to.
fn status_from_another_wait(
    pidfd: BorrowedFd<'_>,
    wait: Wait,
) -> Result<Option<ExitStatus>, Unknown> {
    loop {
        // In this order, because it may be reaped between the two.
        let is_reaped = poll_reaped(pidfd, Wait::NonBlocking)?;
        match exit_status(pidfd)? {
            Some(status) => return Ok(Some(status)),
            None if is_reaped => return Err(Unknown),
            None if wait == Wait::NonBlocking => return Ok(None),
            None => poll_reaped(pidfd, Wait::Blocking)?,
        };
    }
}

/// Returns whether a process has been reaped: `POLLHUP`, Linux 6.9.
fn poll_reaped(pidfd: BorrowedFd<'_>, wait: Wait) -> Result<bool, Unknown> {
    let timeout = match wait {
        Wait::Blocking => -1,
        Wait::NonBlocking => 0,
    };
    let mut polled = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    loop {
        // SAFETY: the pointer is valid for one element.
        match unsafe { libc::poll(&raw mut polled, 1, timeout) } {
            0.. => return Ok(polled.revents & libc::POLLHUP != 0),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(Unknown),
        }
    }
}

/// What the kernel reports about the process of a pidfd: the first version of `struct pidfd_info`. Newer
/// kernels accept it and fill this prefix only.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    /// The id of the thread that the pidfd refers to.
    pub pid: u32,
    /// The id of its process.
    pub tgid: u32,
    other_ids: [u32; 9],
    exit_code: i32,
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: u32 = 3 << 30 | (size_of::<PidfdInfo>() as u32) << 16 | 0xFF << 8 | 11;

/// Requests the exit status of a reaped process: Linux 6.15.
pub const PIDFD_INFO_EXIT: u64 = 1 << 3;

impl PidfdInfo {
    /// Makes a `PIDFD_GET_INFO`, Linux 6.13. Fails with `ESRCH` for a reaped process, unless `mask` is
    /// [`PIDFD_INFO_EXIT`].
    pub fn get(pidfd: BorrowedFd<'_>, mask: u64) -> io::Result<Self> {
        let mut info = Self {
            mask,
            ..Self::default()
        };
        // SAFETY: `info` has the size that is encoded in the request and is valid for the call.
        if unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(info)
    }

    /// Returns the exit status, if it was requested and the process has been reaped.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        (self.mask & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_raw(self.exit_code))
    }
}

/// Returns the exit status of a reaped process. Returns `None` while it has not been reaped.
fn exit_status(pidfd: BorrowedFd<'_>) -> Result<Option<ExitStatus>, Unknown> {
    let info = PidfdInfo::get(pidfd, PIDFD_INFO_EXIT).map_err(|_| Unknown)?;
    Ok(info.exit_status())
}
