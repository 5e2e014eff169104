use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The children that a [`waitid`] call waits for.
#[derive(Clone, Copy, Debug)]
pub enum WaitFor<'a> {
    /// The child with this pid.
    Pid(u32),
    /// The child of this pidfd: Linux 5.4.
    Pidfd(BorrowedFd<'a>),
    /// A child in this process group.
    Group(u32),
    /// Any child. Use it with `WNOWAIT` only: otherwise it takes the children of all other code.
    Any,
}

/// Waits for a child that has exited: `waitid(2)` with these flags and `WEXITED`. Returns its exit
/// status and resource usage, or `None` if the flags have `WNOHANG` and no child has exited.
///
/// Uses the raw system call, because the wrapper of the C library does not return the usage.
pub fn waitid(
    target: WaitFor<'_>,
    flags: libc::c_int,
) -> io::Result<Option<(ExitStatus, libc::rusage)>> {
    let (id_type, id) = match target {
        WaitFor::Pid(pid) => (libc::P_PID, pid),
        WaitFor::Pidfd(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t),
        WaitFor::Group(pgid) => (libc::P_PGID, pgid),
        WaitFor::Any => (libc::P_ALL, 0),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are valid for writes of their types for the length of the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                id_type,
                id,
                info.as_mut_ptr(),
                libc::WEXITED | flags,
                usage.as_mut_ptr(),
            )
        };
        if done == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed memory is a valid siginfo_t and a valid rusage (integers and padding), and the
    // kernel overwrites them with valid ones.
    let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
    Ok(exit_status(&info).map(|status| (status, usage)))
}

/// Returns the exit status that the kernel has written for a wait with `WEXITED`, or `None` if no child
/// has exited.
pub fn exit_status(info: &libc::siginfo_t) -> Option<ExitStatus> {
    // SAFETY: a wait fills the SIGCHLD members, and sets si_pid to 0 if no child has exited.
    let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
    let raw = match info.si_code {
        _ if pid == 0 => return None,
        libc::CLD_EXITED => value << 8,
        libc::CLD_DUMPED => value | 0x80,
        _ => value,
    };
    Some(ExitStatus::from_raw(raw))
}
