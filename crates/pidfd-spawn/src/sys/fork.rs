//! Creates children in a copy of the memory, with the `fork(2)` of the C library.
//!
//! Unlike a raw `clone`, it resets the locks of the C library, so that closures of `pre_exec` that
//! allocate work, although they should not allocate. It returns no pidfd, so the child opens its own and
//! sends it over a socket. The child goes on when the parent has it. The `exec` closes the socket; a
//! child that fails sends the failure over it.

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process;

use super::call::{Errno, call, prctl};
use super::child::{self, Birth, Memory};
use super::pidfd::{self, Born};
use super::signals::Blocked;
use crate::error::{Failure, Step};
use crate::plan::Plan;

pub(super) fn spawn(plan: &mut Plan<'_>) -> Result<Born, Failure> {
    let (ours, theirs) = UnixStream::pair()
        .and_then(|(ours, theirs)| Ok((ours, plan.descriptors.keep(theirs.into())?)))
        .map_err(|error| Failure::of(Step::Clone, &error))?;
    let mut birth = Birth::new(Memory::Copied, process::id());

    // No handler of the parent may run in the child: it would act on what they share, such as the
    // self-pipe of a signal library.
    let blocked = Blocked::new();
    birth.mask = blocked.previous();
    // SAFETY: the child makes system calls, and runs closures that promise to be async-signal-safe.
    match unsafe { libc::fork() } {
        0 => begin(plan, &birth, theirs.as_raw_fd()),
        -1 => Err(Failure::of(Step::Clone, &io::Error::last_os_error())),
        pid => {
            drop(blocked);
            drop(theirs);
            follow(pid.unsigned_abs(), ours)
        }
    }
}

/// Follows a new child until it executes its program or fails.
fn follow(pid: u32, socket: UnixStream) -> Result<Born, Failure> {
    let pidfd = match receive_pidfd(socket.as_raw_fd()) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            // The child ends, because no confirmation will come.
            let _ = socket.shutdown(Shutdown::Write);
            let cause = receive_failure(socket.as_raw_fd());
            pidfd::reap_pid(pid);
            return Err(cause.unwrap_or(Failure::of(Step::Pidfd, &error)));
        }
    };
    // Fails if the child has been killed, which its exit status shows.
    let _ = send(socket.as_raw_fd(), &0_u8, None);
    if let Some(failure) = receive_failure(socket.as_raw_fd()) {
        pidfd::reap(&pidfd);
        return Err(failure);
    }
    Ok(Born { pid, pidfd })
}

/// Runs in the child. Async-signal-safe, except for the closures of the plan.
fn begin(plan: &mut Plan<'_>, birth: &Birth, socket: RawFd) -> ! {
    let _guard = AbortOnUnwind;
    let failure = match announce(socket, birth.parent) {
        Ok(()) => child::run(plan, birth),
        Err(errno) => Failure {
            step: Step::Pidfd,
            errno,
        },
    };
    let _ = send(socket, &failure, None);
    child::exit()
}

/// Keeps the panic of a closure from unwinding into the code of the parent.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        process::abort();
    }
}

/// Sends the pidfd of this process, and waits until the parent has it.
fn announce(socket: RawFd, parent: u32) -> Result<(), Errno> {
    // The socket does not show the parent's death: this process and other children have its end.
    child::die_with(parent, libc::SIGKILL)?;
    // SAFETY: take integers.
    let pidfd = unsafe {
        let pid = call(libc::SYS_getpid, [])?;
        call(libc::SYS_pidfd_open, [pid.into(), 0.into()])
    };
    let sent = send(socket, &0_u8, pidfd.ok().map(|pidfd| pidfd as RawFd));
    // SAFETY: this process has just opened it.
    unsafe { call(libc::SYS_close, [pidfd?.into()]) }?;
    sent?;
    let mut confirmation = 0_u8;
    // SAFETY: the buffer has room for one byte. Signals are blocked.
    let received = unsafe {
        call(
            libc::SYS_read,
            [
                socket.into(),
                (&raw mut confirmation).into(),
                size_of_val(&confirmation).into(),
            ],
        )
    }?;
    if received == 0 {
        child::exit();
    }
    prctl(libc::PR_SET_PDEATHSIG, 0)?;
    Ok(())
}

/// A buffer for one control message with one descriptor, aligned for its header.
#[repr(C)]
union Control {
    _aligned: libc::cmsghdr,
    bytes: [u8; 64],
}

/// Sends the bytes of a value, with a descriptor if there is one. Async-signal-safe.
fn send<T: Copy>(socket: RawFd, value: &T, fd: Option<RawFd>) -> Result<(), Errno> {
    let mut control = Control { bytes: [0; 64] };
    let mut part = libc::iovec {
        iov_base: (value as *const T).cast_mut().cast(),
        iov_len: size_of::<T>(),
    };
    let mut message = message(&mut part, &mut control);
    // SAFETY: the control buffer has room for one header and one descriptor behind it. All that the
    // message points to is valid for the call, which does not write to it.
    unsafe {
        match fd {
            None => message.msg_controllen = 0,
            Some(fd) => {
                message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
                libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
            }
        }
        call(
            libc::SYS_sendmsg,
            [
                socket.into(),
                (&raw const message).into(),
                libc::MSG_NOSIGNAL.into(),
            ],
        )?;
    }
    Ok(())
}

/// Receives the message of [`announce`].
fn receive_pidfd(socket: RawFd) -> io::Result<OwnedFd> {
    let mut control = Control { bytes: [0; 64] };
    let mut byte = 0_u8;
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let mut message = message(&mut part, &mut control);
    // SAFETY: all that the message points to is valid for writes during the call.
    while unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: the kernel has filled the control buffer with whole messages, if any; an SCM_RIGHTS
    // message carries a descriptor that this process owns from now on.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let fd = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
            return Ok(OwnedFd::from_raw_fd(fd));
        }
    }
    // The kernel drops the descriptor if this process has no number for it.
    let errno = if message.msg_flags & libc::MSG_CTRUNC != 0 {
        libc::EMFILE
    } else {
        libc::ESRCH
    };
    Err(io::Error::from_raw_os_error(errno))
}

fn message(part: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: empty, with null pointers.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = (control as *mut Control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    message
}

/// Blocks until the child executes its program, or ends, and returns why it failed if it did.
fn receive_failure(socket: RawFd) -> Option<Failure> {
    let mut failure = MaybeUninit::<Failure>::uninit();
    loop {
        // SAFETY: the buffer has room for a whole failure.
        let received = unsafe {
            libc::read(
                socket,
                failure.as_mut_ptr().cast::<c_void>(),
                size_of::<Failure>(),
            )
        };
        if received < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        let is_whole = received == size_of::<Failure>() as isize;
        // SAFETY: these are the bytes of a failure of the child, which is a copy of this process.
        return is_whole.then(|| unsafe { failure.assume_init() });
    }
}
