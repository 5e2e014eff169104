use std::ffi::{c_int, c_long};
use std::ptr;

/// An error number.
pub(super) type Errno = c_int;

/// An argument of a system call.
#[derive(Clone, Copy)]
pub(super) struct Arg(usize);

macro_rules! from_integer {
    ($($integer:ty),*) => {$(
        impl From<$integer> for Arg {
            fn from(value: $integer) -> Self {
                // Sign-extends negative numbers, as a C compiler does.
                Self(value as usize)
            }
        }
    )*};
}
from_integer!(i32, u32, i64, u64, usize);

impl<T> From<*const T> for Arg {
    fn from(pointer: *const T) -> Self {
        Self(pointer as usize)
    }
}

impl<T> From<*mut T> for Arg {
    fn from(pointer: *mut T) -> Self {
        Self(pointer as usize)
    }
}

/// Makes a system call without the wrapper of the C library, whose wrappers may take locks, change
/// the credentials of all threads (setuid), or refuse the signals that it uses itself.
///
/// Async-signal-safe. It sets the thread's `errno`, which a child in shared memory shares with the
/// parent's thread: that thread is suspended, and expects the spawn to change it.
///
/// # Safety
///
/// The arguments must be valid for that system call.
pub(super) unsafe fn call<const N: usize>(number: c_long, args: [Arg; N]) -> Result<usize, Errno> {
    const { assert!(N <= 6) };
    let mut all = [Arg(0); 6];
    for (slot, arg) in all.iter_mut().zip(args) {
        *slot = arg;
    }
    let [a, b, c, d, e, f] = all.map(|arg| arg.0);
    // SAFETY: valid by the contract of this function; superfluous arguments are ignored.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 {
        // SAFETY: the pointer is valid for the life of the thread.
        return Err(unsafe { *libc::__errno_location() });
    }
    Ok(result as usize)
}

/// A null pointer, for an argument that is absent.
pub(super) const NULL: *const u8 = ptr::null();

/// Makes a `prctl(2)` with one integer. Async-signal-safe.
pub(super) fn prctl(option: c_int, value: c_int) -> Result<usize, Errno> {
    // SAFETY: the options of this crate take one integer, and zeros behind it.
    unsafe { call(libc::SYS_prctl, [option.into(), value.into()]) }
}
