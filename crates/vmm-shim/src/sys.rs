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

/// Makes all threads of this process allocate from one heap, for a program of which a host runs many processes.
///
/// By default, glibc gives threads heaps of their own, which are faster for threads that allocate at the same time. Call it
/// before any thread is started. Does nothing with another C library.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes integers, and affects only from where later allocations come.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Returns the free pages of the heap to the kernel, for a process that waits after work that took more memory than what
/// follows. Does nothing with another C library than glibc.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer. No allocation is in these pages.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
