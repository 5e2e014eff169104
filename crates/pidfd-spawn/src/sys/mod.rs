//! All `unsafe` code: system calls, and the steps of a child between its creation and `exec`.

#![allow(unsafe_code)]

mod call;
mod child;
mod clone;
mod credentials;
mod dumpable;
mod entry;
mod fork;
mod inheritance;
mod message;
mod oom_group;
mod pidfd;
mod signals;
mod slots;
mod wait;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub use message::{Received, receive, send};
pub(crate) use pidfd::{Born, Wait, wait};
pub use pidfd::{PIDFD_INFO_EXIT, PidfdInfo, pidfd_open, pidfd_send_signal};
pub use slots::reserve_descriptors;
pub use wait::{WaitFor, exit_status, waitid};

use crate::error::Failure;
use crate::plan::Plan;
use child::{Birth, Memory};
use signals::Blocked;

/// Creates a child that takes the steps of the plan. Returns once it executes the program.
pub(crate) fn spawn(plan: &mut Plan<'_>) -> Result<Born, Failure> {
    if may_share_memory(plan) {
        if let Some(born) = clone::spawn(plan)? {
            return Ok(born);
        }
    }
    fork::spawn(plan)
}

/// Returns true if a child may share the memory of this process.
fn may_share_memory(plan: &Plan<'_>) -> bool {
    let attributes = plan.attributes;
    // A closure may write to the memory.
    plan.pre_exec.is_empty()
        && !attributes
            .cgroups
            .iter()
            .any(|group| oom_group::may_be_killed(group.as_fd()))
}

/// Takes the steps of the plan in this process.
pub(crate) fn exec(plan: &mut Plan<'_>) -> Failure {
    // Restores the mask if a step fails.
    let blocked = Blocked::new();
    let mut birth = Birth::new(Memory::Own, std::os::unix::process::parent_id());
    birth.mask = blocked.previous();
    child::run(plan, &birth)
}

/// Creates a pipe and returns its ends for reading and for writing, both close-on-exec.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let [reader, writer] = ends;
    // SAFETY: the kernel has just created both, and no other code has them.
    Ok(unsafe { (OwnedFd::from_raw_fd(reader), OwnedFd::from_raw_fd(writer)) })
}

/// Blocks until at least one descriptor has data or is at its end, and returns which.
pub(crate) fn poll_readable(fds: [BorrowedFd<'_>; 2]) -> io::Result<[bool; 2]> {
    let mut polled = fds.map(|fd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: the array is valid for the call.
    while unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(polled.map(|polled| polled.revents != 0))
}
