//! Keeps the memory that a child shares out of core dumps of another user.
//!
//! Between `setuid` and `exec` a child in shared memory belongs to another user, who may send it a
//! signal that dumps core. The dump would be a file of that user, with the memory of the parent; before
//! Linux 5.16 it would also kill the parent. So the child makes the memory not *dumpable*
//! (`PR_SET_DUMPABLE` in `prctl(2)`) while it still blocks all signals. The kernel does so too when
//! the user changes, unless `fs.suid_dumpable` says otherwise.
//!
//! The attribute belongs to the memory and so to the parent. [`Protection`] restores it when no such
//! child is left.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::call::{Errno, prctl};

const DUMPABLE: i32 = 1;
const NOT_DUMPABLE: i32 = 0;

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
