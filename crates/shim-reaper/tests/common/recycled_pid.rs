//! Children with a chosen pid: `clone3(2)` with `set_tid`, Linux 5.5, as root.

use std::env;
use std::io;
use std::mem;

use nix::libc;

/// Starts a child with this pid, which must be free. The child stays until it is killed.
///
/// Returns `None`, after a note on stderr, where the kernel does not permit that.
pub fn sleeper_with_pid(pid: u32) -> Option<u32> {
    spawn_with_pid(pid, None)
}

/// Starts a child with this pid, as [`sleeper_with_pid`] does. The child exits with `code` at once.
pub fn exits_with_pid(pid: u32, code: i32) -> Option<u32> {
    spawn_with_pid(pid, Some(code))
}

fn spawn_with_pid(pid: u32, exit_code: Option<i32>) -> Option<u32> {
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
    match (child, exit_code) {
        (0, None) => loop {
            // SAFETY: takes no arguments.
            unsafe { libc::pause() };
        },
        // SAFETY: ends the child without running any code of the parent.
        (0, Some(code)) => unsafe { libc::_exit(code) },
        (-1, _) => {
            let error = io::Error::last_os_error();
            let is_denied = error.raw_os_error() == Some(libc::EPERM);
            let is_taken = error.raw_os_error() == Some(libc::EEXIST);
            assert!(is_denied || is_taken, "clone3 with set_tid {pid}: {error}");
            if is_taken {
                eprintln!("SKIPPED: another process has got the pid {pid}");
            } else {
                // Not `skip`, because the chaos program uses this file too.
                assert!(env::var_os("CI").is_none(), "cannot choose a pid: {error}");
                eprintln!("SKIPPED: this test needs CAP_CHECKPOINT_RESTORE to choose a pid");
            }
            None
        }
        (child, _) => Some(u32::try_from(child).unwrap()),
    }
}
