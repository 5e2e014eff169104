//! Keeps the memory of a shim small, because a host runs thousands of them. Does nothing with another C
//! library than glibc.

#![allow(unsafe_code)]

/// Makes all threads allocate from one heap. By default, each thread has one of its own. Call it before
/// any thread is started.
pub(crate) fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes integers, and affects only from where later allocations come.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Returns the free pages of the heap to the kernel.
pub(crate) fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer. No allocation is in these pages.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
