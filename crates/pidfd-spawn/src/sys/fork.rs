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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process;

use super::call::{Errno, call, prctl};
use super::child::{self, Birth, Memory};
use super::message::{receive, send};
use super::pidfd::{self, Born};
use super::signals::Blocked;
use crate::error::{Failure, Step, errno_of};
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
        0 => begin(plan, &birth, theirs.as_fd()),
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
    let pidfd = match receive_pidfd(socket.as_fd()) {
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
    let _ = send(socket.as_fd(), &0_u8, None);
    if let Some(failure) = receive_failure(socket.as_raw_fd()) {
        pidfd::reap(&pidfd);
        return Err(failure);
    }
    Ok(Born { pid, pidfd })
}

/// Runs in the child. Async-signal-safe, except for the closures of the plan.
fn begin(plan: &mut Plan<'_>, birth: &Birth, socket: BorrowedFd<'_>) -> ! {
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
fn announce(socket: BorrowedFd<'_>, parent: u32) -> Result<(), Errno> {
    // The socket does not show the parent's death: this process and other children have its end.
    child::die_with(parent, libc::SIGKILL)?;
    let pidfd = pidfd::pidfd_open(process::id());
    let sent = send(socket, &0_u8, pidfd.as_ref().ok().map(AsFd::as_fd));
    // Closed here, because the closures of the plan must not find it.
    drop(pidfd.map_err(|error| errno_of(&error))?);
    sent.map_err(|error| errno_of(&error))?;
    let mut confirmation = 0_u8;
    // SAFETY: the buffer has room for one byte. Signals are blocked.
    let received = unsafe {
        call(
            libc::SYS_read,
            [
                socket.as_raw_fd().into(),
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

/// Receives the message of [`announce`].
fn receive_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let received = receive(socket)?;
    let errno = if received.lost_fd {
        libc::EMFILE
    } else {
        libc::ESRCH
    };
    received
        .fd
        .ok_or_else(|| io::Error::from_raw_os_error(errno))
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
