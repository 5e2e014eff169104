//! Children with a pid of the test's choice: `clone3(2)` with `set_tid`, Linux 5.5, as root.

use std::io;
use std::mem;

use nix::libc;

/// A child of this process that stays until it is killed, with a pid that must be free.
///
/// `None`, after saying so, where that is not permitted.
pub fn sleeper_with_pid(pid: u32) -> Option<u32> {
    spawn_with_pid(pid, Ending::Never)
}

/// A child of this process that exits with `code` at once.
pub fn exits_with_pid(pid: u32, code: i32) -> Option<u32> {
    spawn_with_pid(pid, Ending::Code(code))
}

#[derive(Clone, Copy)]
enum Ending {
    Never,
    Code(i32),
}

fn spawn_with_pid(pid: u32, ending: Ending) -> Option<u32> {
    let wanted = [i32::try_from(pid).unwrap()];
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    args.set_tid = wanted.as_ptr() as u64;
    args.set_tid_size = 1;
    // SAFETY: without CLONE_VM it is a fork; the child calls async-signal-safe functions only.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            mem::size_of::<libc::clone_args>(),
        )
    };
    match (child, ending) {
        (0, Ending::Never) => loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        },
        // SAFETY: ends the child without running anything of the parent's.
        (0, Ending::Code(code)) => unsafe { libc::_exit(code) },
        (-1, _) => {
            let error = io::Error::last_os_error();
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EPERM),
                "clone3 with set_tid {pid}: {error}"
            );
            eprintln!(
                "SKIPPED: choosing a pid is not permitted here (needs CAP_CHECKPOINT_RESTORE)"
            );
            None
        }
        (child, _) => Some(u32::try_from(child).unwrap()),
    }
}
