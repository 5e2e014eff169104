//! System calls and calls of the C library that are unsafe.

#![allow(unsafe_code)]

use std::io;

use nix::sys::signal::{SigHandler, Signal, signal};

/// Resets SIGCHLD, which this process may have inherited as ignored.
pub(crate) fn reset_sigchld() -> io::Result<()> {
    // SAFETY: installs no handler.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    Ok(())
}

/// Makes all threads allocate from one heap. By default, each thread has one of its own. Call it before
/// any thread is started. Does nothing with another C library than glibc.
pub(crate) fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes integers, and affects only from where later allocations come.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Returns the free pages of the heap to the kernel. Does nothing with another C library than glibc.
pub(crate) fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer. No allocation is in these pages.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
