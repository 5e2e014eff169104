use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;

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

/// Sends a signal: `pidfd_send_signal(2)`, Linux 5.1.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: with a null siginfo pointer the kernel fills it in as kill(2) does.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            no_info,
            0,
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
    match waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, wait) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
            status_from_another_wait(pidfd, wait).map_err(|Unknown| error)
        }
        result => result,
    }
}

/// Reaps a child that is about to exit, whether or not another wait does so first.
pub(super) fn reap(pidfd: &OwnedFd) {
    // It fails with ECHILD if another wait or the kernel has reaped the child.
    let _ = waitid(
        libc::P_PIDFD,
        pidfd.as_raw_fd() as libc::id_t,
        Wait::Blocking,
    );
}

/// Reaps a child that has no pidfd.
pub(super) fn reap_pid(pid: u32) {
    let _ = waitid(libc::P_PID, pid, Wait::Blocking);
}

fn waitid(id_type: libc::idtype_t, id: libc::id_t, wait: Wait) -> io::Result<Option<ExitStatus>> {
    let mut flags = libc::WEXITED;
    if wait == Wait::NonBlocking {
        flags |= libc::WNOHANG;
    }
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the pointer is valid for writes of its type.
    while unsafe { libc::waitid(id_type, id, info.as_mut_ptr(), flags) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed memory is a valid siginfo_t, and the kernel overwrites it with a valid one.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid(2) fills the SIGCHLD members, and sets si_pid to 0 if no child has exited.
    let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(ExitStatus::from_raw(match info.si_code {
        libc::CLD_EXITED => value << 8,
        libc::CLD_DUMPED => value | 0x80,
        _ => value,
    })))
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

/// The first version of `struct pidfd_info`. Newer kernels accept it and fill this prefix only.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: u32 = 3 << 30 | (size_of::<PidfdInfo>() as u32) << 16 | 0xFF << 8 | 11;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// Returns the exit status of a reaped process: `PIDFD_INFO_EXIT`, Linux 6.15. Returns `None` while
/// it has not been reaped.
fn exit_status(pidfd: BorrowedFd<'_>) -> Result<Option<ExitStatus>, Unknown> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: `info` has the size that is encoded in the request and is valid for the call.
    if unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) } < 0 {
        return Err(Unknown);
    }
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code)))
}
