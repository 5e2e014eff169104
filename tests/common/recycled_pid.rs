//! A child with a chosen pid: `clone3(2)` with `set_tid`, Linux 5.5, as root.

use std::io;
use std::mem;

use nix::libc;

/// Starts a child with this pid, which must be free. The child stays until it is killed.
///
/// Returns `None`, after a note on stderr, where the kernel does not permit that.
pub fn sleeper_with_pid(pid: u32) -> Option<u32> {
    let set_tid = [i32::try_from(pid).unwrap()];
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.set_tid = set_tid.as_ptr() as u64;
    args.set_tid_size = 1;
    // SAFETY: without CLONE_VM this is a fork; the child calls async-signal-safe functions only.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            mem::size_of::<libc::clone_args>(),
        )
    };
    match child {
        0 => loop {
            // SAFETY: takes no arguments.
            unsafe { libc::pause() };
        },
        -1 => {
            let error = io::Error::last_os_error();
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EPERM),
                "clone3 with set_tid {pid}: {error}"
            );
            super::skip("this test needs CAP_CHECKPOINT_RESTORE to choose a pid");
            None
        }
        child => Some(u32::try_from(child).unwrap()),
    }
}
