//! All `unsafe` code: the Linux system calls that neither std nor nix wraps, and the registration
//! of borrowed descriptors with tokio.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::ptr;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ResourceUsage;

/// The children that a [`waitid`] call waits for. There is deliberately no variant for `P_ALL`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WaitFor<'a> {
    Pid(u32),
    Pidfd(BorrowedFd<'a>),
    Group(u32),
}

/// The exit of a child, as `waitid(2)` reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildExit {
    pub(crate) status: ExitStatus,
    pub(crate) usage: ResourceUsage,
}

/// Opens a pidfd, which is close-on-exec: `pidfd_open(2)`, Linux 5.3.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and touches no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor and no other code has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal: `pidfd_send_signal(2)`, Linux 5.1. With `None` it only checks that the process
/// has not been reaped.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Option<Signal>) -> io::Result<()> {
    let signal = signal.map_or(0, |signal| signal as libc::c_int);
    // SAFETY: with a null siginfo pointer the kernel fills it in as kill(2) does.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns whether the process is a zombie or reaped; its pidfd is then readable.
pub(crate) fn pidfd_has_exited(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Waits for an exited child without blocking: `waitid(2)`; `P_PIDFD` needs Linux 5.4.
///
/// With `keep_zombie` the zombie stays waitable (`WNOWAIT`). Uses the raw system call, because libc's
/// wrapper does not return the resource usage.
pub(crate) fn waitid(target: WaitFor<'_>, keep_zombie: bool) -> io::Result<Option<ChildExit>> {
    let (id_type, id) = match target {
        WaitFor::Pid(pid) => (libc::P_PID, pid),
        WaitFor::Pidfd(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd() as u32),
        WaitFor::Group(pgid) => (libc::P_PGID, pgid),
    };
    let mut flags = libc::WEXITED | libc::WNOHANG;
    if keep_zombie {
        flags |= libc::WNOWAIT;
    }
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are valid for writes of their types for the length of the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            id_type,
            id,
            info.as_mut_ptr(),
            flags,
            usage.as_mut_ptr(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed memory is a valid siginfo_t and a valid rusage (integers and padding), and
    // the kernel overwrites them with valid ones.
    let (info, usage) = unsafe { (info.assume_init(), usage.assume_init()) };
    // SAFETY: waitid(2) fills the SIGCHLD members, and sets si_pid to 0 if no child has exited.
    let (pid, value) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let raw = match info.si_code {
        libc::CLD_EXITED => value << 8,
        libc::CLD_DUMPED => value | 0x80,
        _ => value,
    };
    Ok(Some(ChildExit {
        status: ExitStatus::from_raw(raw),
        usage: ResourceUsage::from_raw(&usage),
    }))
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

const PIDFD_INFO_EXIT: u64 = 1 << 3;

nix::ioctl_readwrite!(pidfd_get_info, 0xFF, 11, PidfdInfo);

/// Returns the wait status of a process that any wait has reaped: `PIDFD_GET_INFO` with
/// `PIDFD_INFO_EXIT`, Linux 6.15. Returns `None` before that, and on older kernels.
pub(crate) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<ExitStatus> {
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: `info` has the size that is encoded in the request and is valid for the call.
    unsafe { pidfd_get_info(pidfd.as_raw_fd(), &raw mut info) }.ok()?;
    (info.mask & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code))
}

/// Returns true if the kernel reaps children itself: SIGCHLD is ignored, or `SA_NOCLDWAIT` is set.
pub(crate) fn kernel_reaps_children() -> bool {
    let mut current = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action the call only writes the current one, to a valid pointer.
    if unsafe { libc::sigaction(libc::SIGCHLD, ptr::null(), current.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: all-zero is a valid sigaction, and the call has filled it.
    let current = unsafe { current.assume_init() };
    current.sa_sigaction == libc::SIG_IGN || current.sa_flags & libc::SA_NOCLDWAIT != 0
}

/// Makes the child open its own pidfd before `exec` and send it through `socket`.
pub(crate) fn send_pidfd_before_exec(command: &mut Command, socket: UnixDatagram) {
    // SAFETY: the closure only makes system calls, on memory of its own stack.
    unsafe { command.pre_exec(move || send_own_pidfd(socket.as_raw_fd())) };
}

/// A buffer for one control message with one descriptor, aligned for its header.
#[repr(C)]
union Control {
    _aligned: libc::cmsghdr,
    bytes: [u8; 64],
}

/// Sends a pidfd of the calling process. Async-signal-safe. Does nothing if it cannot open one; the
/// parent then opens it.
fn send_own_pidfd(socket: RawFd) -> io::Result<()> {
    // SAFETY: takes and returns integers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    let Ok(pidfd @ 0..) = RawFd::try_from(pidfd) else {
        return Ok(());
    };
    let mut control = Control { bytes: [0; 64] };
    with_message(&mut control, |message| {
        // SAFETY: the message has room for one header and one descriptor behind it.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header)
                .cast::<RawFd>()
                .write_unaligned(pidfd);
            libc::sendmsg(socket, message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        }
    });
    Ok(())
}

/// Receives the pidfd that [`send_pidfd_before_exec`] sent, if any.
pub(crate) fn receive_pidfd(socket: &UnixDatagram) -> Option<OwnedFd> {
    let mut control = Control { bytes: [0; 64] };
    with_message(&mut control, |message| {
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: all that the message points to is valid for writes during the call.
        if unsafe { libc::recvmsg(socket.as_raw_fd(), message, flags) } < 0 {
            return None;
        }
        // SAFETY: the kernel has filled the control buffer with whole messages, if any; an
        // SCM_RIGHTS message carries descriptors that this process owns from now on.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
                return None;
            }
            let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
            Some(OwnedFd::from_raw_fd(fd))
        }
    })
}

/// Calls `call` with a message of one byte and the control buffer.
fn with_message<T>(control: &mut Control, call: impl FnOnce(&mut libc::msghdr) -> T) -> T {
    let mut byte = 0_u8;
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: all-zero is a valid msghdr: empty, with null pointers.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (control as *mut Control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    call(&mut message)
}

/// Registers a descriptor for reading with the current tokio runtime.
pub(crate) fn poll_readable(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a `BorrowedFd` stays open for its lifetime, which the result shares.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
