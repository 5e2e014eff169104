//! All `unsafe` code: the Linux system calls that neither std nor nix wraps, and the registration
//! of borrowed descriptors with tokio.

#![allow(unsafe_code)]

pub(crate) mod init;

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{ResourceUsage, Signal};

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
    send_signal(pidfd, signal, 0)
}

/// Sends a signal to every process in the process group that the process leads or has led:
/// `PIDFD_SIGNAL_PROCESS_GROUP`, Linux 6.9. With `None` it only checks that there is one. Fails with
/// `EINVAL` on older kernels.
pub(crate) fn pidfd_signal_group(leader: BorrowedFd<'_>, signal: Option<Signal>) -> io::Result<()> {
    send_signal(leader, signal, PIDFD_SIGNAL_PROCESS_GROUP)
}

const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

fn send_signal(
    pidfd: BorrowedFd<'_>,
    signal: Option<Signal>,
    flags: libc::c_uint,
) -> io::Result<()> {
    let signal = signal.map_or(0, Signal::as_raw);
    // SAFETY: with a null siginfo pointer the kernel fills it in as kill(2) does.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            flags,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal by pid: `kill(2)`.
pub(crate) fn kill(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: takes two integers and touches no memory of this process.
    if unsafe { libc::kill(pid, signal.as_raw()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal to every process in a process group by its number: `kill(2)`. With `None` it only
/// checks that there is one.
pub(crate) fn kill_group(pgid: u32, signal: Option<Signal>) -> io::Result<()> {
    let pgid = libc::pid_t::try_from(pgid).map_err(io::Error::other)?;
    // SAFETY: takes two integers and touches no memory of this process.
    if unsafe { libc::kill(-pgid, signal.map_or(0, Signal::as_raw)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns whether the process is a zombie or reaped; its pidfd is then readable.
pub(crate) fn pidfd_has_exited(pidfd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(pidfd, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Waits until the process is a zombie or reaped, or `deadline` has passed. Returns whether it is.
pub(crate) fn pidfd_await_exit(pidfd: BorrowedFd<'_>, deadline: Option<Instant>) -> bool {
    await_event(pidfd, PollFlags::POLLIN, deadline)
}

/// Waits until the descriptor has one of the events, or `deadline` has passed. Returns whether it has.
pub(crate) fn await_event(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> bool {
    loop {
        let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => Ok(PollTimeout::ZERO),
            // Rounded up, so that the last poll does not end early.
            Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)),
            None => Ok(PollTimeout::NONE),
        };
        let mut polled = [PollFd::new(fd, events)];
        let ready = poll(&mut polled, timeout.unwrap_or(PollTimeout::MAX));
        let interrupted = ready == Err(Errno::EINTR);
        if !interrupted && (ready != Ok(0) || deadline.is_some_and(|at| at <= Instant::now())) {
            return ready.is_ok_and(|ready| ready > 0);
        }
    }
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

/// Returns whether any child has exited. Leaves it waitable, and does not return which: the only use of
/// `P_ALL`.
pub(crate) fn has_zombie() -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is valid for a write during the call.
    let done = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags) };
    // SAFETY: zeroed memory is a valid siginfo_t; waitid(2) sets si_pid to 0 if no child has exited.
    done == 0 && unsafe { info.assume_init().si_pid() } != 0
}

/// The first version of `struct pidfd_info`. Newer kernels accept it and fill this prefix only.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    other_ids: [u32; 9],
    exit_code: i32,
}

const PIDFD_INFO_PID: u64 = 1;
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

/// Returns the pid of a process: `PIDFD_GET_INFO`, Linux 6.13. Fails with ESRCH if it has been
/// reaped, and with `InvalidInput` if it is a thread. Returns `None` on older kernels, and for a
/// descriptor that is not a pidfd.
pub(crate) fn pidfd_pid(pidfd: BorrowedFd<'_>) -> Option<io::Result<u32>> {
    // A pidfd of the first thread of a process has the pid of the process.
    if fcntl(pidfd, FcntlArg::F_GETFL).is_ok_and(|flags| flags & libc::PIDFD_THREAD as i32 != 0) {
        return Some(Err(io::ErrorKind::InvalidInput.into()));
    }
    let mut info = PidfdInfo {
        mask: PIDFD_INFO_PID,
        ..PidfdInfo::default()
    };
    // SAFETY: as in `pidfd_exit_status`.
    match unsafe { pidfd_get_info(pidfd.as_raw_fd(), &raw mut info) } {
        Ok(_) if info.pid == info.tgid => Some(Ok(info.pid)),
        Ok(_) => Some(Err(io::ErrorKind::InvalidInput.into())),
        Err(Errno::ESRCH) => Some(Err(Errno::ESRCH.into())),
        Err(_) => None,
    }
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

/// Makes the child report through `socket`, just before it executes the program: it sends its pidfd,
/// and if the program cannot be executed, the error. [`receive_report`] receives both.
///
/// The caller keeps `socket` until the command has been spawned. If it is spawned again, that child
/// reports nothing.
pub(crate) fn report_before_exec(command: &mut Command, socket: &Arc<UnixStream>) {
    let socket = Arc::downgrade(socket);
    // SAFETY: the closure only makes system calls, on memory of its own stack; it frees no memory,
    // because the caller has the socket too.
    unsafe {
        command.pre_exec(move || {
            if let Some(socket) = socket.upgrade() {
                if send_own_pidfd(socket.as_raw_fd()) {
                    redirect_exec_error(socket.as_raw_fd());
                }
            }
            Ok(())
        });
    }
}

/// What a child has sent: see [`report_before_exec`].
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) pidfd: Option<OwnedFd>,
    pub(crate) exec_error: Option<io::Error>,
}

/// A buffer for one control message with one descriptor, aligned for its header.
#[repr(C)]
union Control {
    _aligned: libc::cmsghdr,
    bytes: [u8; 64],
}

/// Sends one byte, with a pidfd of the calling process if it can open one. Async-signal-safe.
fn send_own_pidfd(socket: RawFd) -> bool {
    // SAFETY: takes and returns integers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    let mut control = Control { bytes: [0; 64] };
    with_message(&mut control, |message| {
        message.msg_controllen = 0;
        // SAFETY: all that the message points to is valid, and it has room for one header and one
        // descriptor behind it.
        unsafe {
            if let Ok(pidfd @ 0..) = RawFd::try_from(pidfd) {
                message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
                let header = libc::CMSG_FIRSTHDR(message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
                libc::CMSG_DATA(header)
                    .cast::<RawFd>()
                    .write_unaligned(pidfd);
                let sent = libc::sendmsg(socket, message, libc::MSG_NOSIGNAL);
                // Leaves a descriptor for the directory that `redirect_exec_error` opens.
                libc::close(pidfd);
                return sent == 1;
            }
            libc::sendmsg(socket, message, libc::MSG_NOSIGNAL) == 1
        }
    })
}

/// Makes std write the error of a failed `exec` to `socket`. Async-signal-safe.
///
/// std reports that error to its parent side through a socket pair. The parent side then waits for
/// the child, and panics if SIGCHLD is ignored or a foreign wait came first. Here, `socket` replaces
/// the child's end of that pair, so that the parent side sees the end of file that means success.
/// Other close-on-exec sockets of that type are replaced too: the `exec` would close them.
fn redirect_exec_error(socket: RawFd) {
    // SAFETY: the path ends with a NUL.
    let directory = unsafe {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        libc::open(c"/proc/self/fd".as_ptr(), flags)
    };
    let mut buffer = [0_u8; 4096];
    loop {
        let (start, size) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: the buffer is valid for writes of its length.
        let filled = unsafe { libc::syscall(libc::SYS_getdents64, directory, start, size) };
        let Some(mut entries) = usize::try_from(filled).ok().and_then(|n| buffer.get(..n)) else {
            return;
        };
        if entries.is_empty() {
            return;
        }
        // struct linux_dirent64: the length of the entry at 16, its name at 19.
        while !entries.is_empty() {
            let Some(&[low, high]) = entries.get(16..18) else {
                return;
            };
            let length = usize::from(u16::from_ne_bytes([low, high]));
            let (Some(name), Some(rest)) = (entries.get(19..length), entries.get(length..)) else {
                return;
            };
            if let Some(fd) = parse_descriptor(name) {
                if fd != socket && is_seqpacket_closed_on_exec(fd) {
                    // SAFETY: takes and returns integers; `exec` would close the replaced descriptor.
                    unsafe { libc::dup3(socket, fd, libc::O_CLOEXEC) };
                }
            }
            entries = rest;
        }
    }
}

/// Parses a decimal number that a NUL ends.
fn parse_descriptor(name: &[u8]) -> Option<RawFd> {
    let mut fd: RawFd = 0;
    for byte in name.iter().take_while(|byte| **byte != 0) {
        let digit = char::from(*byte).to_digit(10)?;
        fd = fd.checked_mul(10)?.checked_add(digit as RawFd)?;
    }
    Some(fd)
}

fn is_seqpacket_closed_on_exec(fd: RawFd) -> bool {
    let mut kind: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are valid for writes of their types during the call.
    let is_socket = unsafe {
        let kind = (&raw mut kind).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, kind, &raw mut size) == 0
    };
    // SAFETY: takes and returns integers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    is_socket && kind == libc::SOCK_SEQPACKET && flags >= 0 && flags & libc::FD_CLOEXEC != 0
}

/// Receives what a child has sent. Returns when it has executed its program or ended.
pub(crate) fn receive_report(mut socket: &UnixStream) -> Report {
    let mut report = Report::default();
    let mut control = Control { bytes: [0; 64] };
    let received = with_message(&mut control, |message| {
        let received = loop {
            // SAFETY: all that the message points to is valid for writes during the call.
            let received =
                unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC) };
            if received >= 0 || Errno::last() != Errno::EINTR {
                break received;
            }
        };
        // SAFETY: the kernel has filled the control buffer with whole messages, if any; an
        // SCM_RIGHTS message carries descriptors that this process owns from now on.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            if received == 1 && !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
                let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
                report.pidfd = Some(OwnedFd::from_raw_fd(fd));
            }
        }
        received
    });
    // std sends the error number in network order, and a footer.
    let mut error = [0; 8];
    if received == 1 && socket.read_exact(&mut error).is_ok() {
        let [a, b, c, d, ..] = error;
        let errno = i32::from_be_bytes([a, b, c, d]);
        report.exec_error = Some(io::Error::from_raw_os_error(errno));
    }
    report
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
