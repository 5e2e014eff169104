use std::mem::MaybeUninit;

use super::call::{Errno, NULL, call};

/// A set of the kernel's 64 signals, also of those that the C library reserves for itself.
pub(super) type Mask = u64;

/// Blocks all signals in this thread until it is dropped.
///
/// A child in shared memory inherits the mask, so that no signal handler of this process runs in
/// the child.
pub(super) struct Blocked {
    previous: Mask,
}

impl Blocked {
    pub(super) fn new() -> Self {
        let mut previous = 0;
        // Cannot fail with valid arguments.
        let _ = set_mask(Mask::MAX, Some(&mut previous));
        Self { previous }
    }

    /// Returns the mask that dropping this restores.
    pub(super) fn previous(&self) -> Mask {
        self.previous
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = set_mask(self.previous, None);
    }
}

/// Sets the signal mask of the calling thread. Async-signal-safe.
pub(super) fn set_mask(mask: Mask, previous: Option<&mut Mask>) -> Result<(), Errno> {
    let previous = previous.map_or(NULL.cast_mut().cast(), |previous| &raw mut *previous);
    // SAFETY: both pointers are null or valid for a set of the given size.
    unsafe {
        call(
            libc::SYS_rt_sigprocmask,
            [
                libc::SIG_SETMASK.into(),
                (&raw const mask).into(),
                previous.into(),
                size_of::<Mask>().into(),
            ],
        )
    }?;
    Ok(())
}

/// The kernel's `struct sigaction`: the handler, the flags, the restorer and the mask.
type Action = [usize; 4];

static DEFAULT: Action = [libc::SIG_DFL, 0, 0, 0];

/// Sets the default action of a signal. Async-signal-safe.
pub(super) fn set_default(signal: i32) -> Result<(), Errno> {
    // SAFETY: the new action is valid, and no old one is returned.
    unsafe {
        call(
            libc::SYS_rt_sigaction,
            [
                signal.into(),
                (&raw const DEFAULT).into(),
                NULL.into(),
                size_of::<Mask>().into(),
            ],
        )
    }?;
    Ok(())
}

/// Sets the default action of each signal that has a handler, and with `ignored` also of those that
/// are ignored. Async-signal-safe.
pub(super) fn set_all_default(ignored: bool) -> Result<(), Errno> {
    for signal in 1..=Mask::BITS as i32 {
        match handler(signal)? {
            libc::SIG_DFL => {}
            libc::SIG_IGN if !ignored => {}
            _ => set_default(signal)?,
        }
    }
    Ok(())
}

fn handler(signal: i32) -> Result<usize, Errno> {
    let mut action = MaybeUninit::<Action>::zeroed();
    // SAFETY: the current action is written to a buffer of its size, and not changed.
    unsafe {
        call(
            libc::SYS_rt_sigaction,
            [
                signal.into(),
                NULL.into(),
                action.as_mut_ptr().into(),
                size_of::<Mask>().into(),
            ],
        )
    }?;
    // SAFETY: any bytes are valid integers, and all are initialized.
    let [handler, ..] = unsafe { action.assume_init() };
    Ok(handler)
}
