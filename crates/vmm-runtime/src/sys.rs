//! Every `unsafe` block of this crate.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::libc::{self, c_int};
use rustix::process::{getpid, getuid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vmm_protocol::stop_signal::SI_QUEUE;

/// Registers a descriptor for reading with the current tokio runtime.
pub(crate) fn poll_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open, with the same number, until the result drops it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// A `siginfo_t` of `sigqueue(3)`. The kernel reads the fields of a signal that has a value.
#[repr(C)]
struct QueuedSignal {
    signo: c_int,
    errno: c_int,
    code: c_int,
    fields: QueuedFields,
}

/// Aligned as the pointers among the fields of other signals.
#[repr(C, align(8))]
struct QueuedFields {
    pid: libc::pid_t,
    uid: libc::uid_t,
    value: c_int,
    unused: [u8; 100],
}

const _: () = assert!(mem::size_of::<QueuedSignal>() == mem::size_of::<libc::siginfo_t>());

/// Sends a signal with a value to the process of a pidfd: `pidfd_send_signal(2)`, Linux 5.1.
pub(crate) fn queue_signal(pidfd: BorrowedFd<'_>, signal: c_int, value: c_int) -> io::Result<()> {
    let info = QueuedSignal {
        signo: signal,
        errno: 0,
        code: SI_QUEUE,
        fields: QueuedFields {
            pid: getpid().as_raw_pid(),
            uid: getuid().as_raw(),
            value,
            unused: [0; 100],
        },
    };
    // SAFETY: `info` has the size of a `siginfo_t` and is initialized. The kernel only reads it.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            &raw const info,
            0,
        )
    };
    match sent {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
