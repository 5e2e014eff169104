//! Protects shared memory from the user that a child changes to.
//!
//! Between `setuid` and `exec` a child in shared memory belongs to another user, while its memory is
//! still that of the parent. What keeps that user out is that the memory is not *dumpable*
//! (`PR_SET_DUMPABLE` in `prctl(2)`):
//!
//! * The kernel clears the attribute before it grants the new credentials. Without it, only a
//!   process with `CAP_SYS_PTRACE` can trace the child, or read or write its memory. With
//!   `fs.suid_dumpable` set to 1 the kernel does not clear it; the child is then forked.
//! * With `fs.suid_dumpable` set to 2, the memory can be dumped, but not traced. A core dump would
//!   also kill the parent before Linux 5.16. So the child clears the attribute itself, while it
//!   still blocks all signals.
//!
//! The attribute belongs to the memory and so to the parent. [`Protection`] restores it when no such
//! child is left.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::call::{Errno, prctl};

const DUMPABLE: i32 = 1;
const NOT_DUMPABLE: i32 = 0;

/// Returns true if the kernel clears the attribute when the user of a process changes.
pub(super) fn protects_shared_memory() -> bool {
    fs::read("/proc/sys/fs/suid_dumpable")
        .is_ok_and(|setting| matches!(setting.trim_ascii(), b"0" | b"2"))
}

/// Clears the attribute. Async-signal-safe.
pub(super) fn forbid() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, NOT_DUMPABLE)?;
    Ok(())
}

/// Restores the attribute of this process when the last of these is dropped.
pub(super) struct Protection(());

struct Protected {
    children: usize,
    was_dumpable: bool,
}

static PROTECTED: Mutex<Protected> = Mutex::new(Protected {
    children: 0,
    was_dumpable: false,
});

fn lock() -> MutexGuard<'static, Protected> {
    PROTECTED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Protection {
    /// Keeps the attribute from being restored, for as long as a child may be in shared memory.
    pub(super) fn new() -> Self {
        let mut protected = lock();
        if protected.children == 0 {
            protected.was_dumpable = prctl(libc::PR_GET_DUMPABLE, 0) == Ok(DUMPABLE as usize);
        }
        protected.children += 1;
        Self(())
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        let mut protected = lock();
        protected.children -= 1;
        if protected.children == 0 && protected.was_dumpable {
            // Cannot fail with this value.
            let _ = prctl(libc::PR_SET_DUMPABLE, DUMPABLE);
        }
    }
}
