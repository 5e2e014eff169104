//! The system calls of [`crate::init`]. nix does not support real-time signals.

use std::env;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::panic::{self, UnwindSafe};
use std::process::ExitStatus;
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::unistd::{self, ForkResult, Pid};

/// What [`block_signals`] has replaced.
#[derive(Debug)]
pub(crate) struct OriginalSignals {
    mask: SigSet,
    on_child_exit: Option<SigAction>,
}

/// Blocks all signals, so that they can be waited for, and lets the kernel keep zombies.
pub(crate) fn block_signals() -> OriginalSignals {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // Fails only for an invalid argument, which this is not.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    OriginalSignals {
        mask: mask.unwrap_or_else(|_| SigSet::empty()),
        // SAFETY: installs no handler.
        on_child_exit: unsafe { signal::sigaction(Signal::SIGCHLD, &default) }.ok(),
    }
}

impl OriginalSignals {
    pub(crate) fn restore(self) {
        if let Some(action) = self.on_child_exit {
            // SAFETY: the action was in effect before.
            let _ = unsafe { signal::sigaction(Signal::SIGCHLD, &action) };
        }
        let _ = self.mask.thread_set_mask();
    }
}

/// The reason why a process was not forked.
#[derive(Debug)]
pub(crate) enum ForkError {
    CountThreads(io::Error),
    Threads(usize),
    Fork(io::Error),
}

/// Forks a process that has one thread.
pub(crate) fn fork() -> Result<ForkResult, ForkError> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(ForkError::CountThreads)?
        .count();
    if threads != 1 {
        return Err(ForkError::Threads(threads));
    }
    // SAFETY: without other threads the copy is complete, and may run any code.
    unsafe { unistd::fork() }.map_err(|error| ForkError::Fork(error.into()))
}

/// Sets an environment variable in the child of a [`fork`].
pub(crate) fn set_env(name: &str, value: &str) {
    // SAFETY: the child of a fork has one thread.
    unsafe { env::set_var(name, value) }
}

/// Removes an environment variable in the child of a [`fork`].
pub(crate) fn remove_env(name: &str) {
    // SAFETY: as above.
    unsafe { env::remove_var(name) }
}

/// Runs `run`, and ends this process with the code that it returns. The process is a copy of the
/// program, so this first closes all descriptors but the standard streams, and runs no exit handler.
pub(crate) fn end_with(run: impl FnOnce() -> i32 + UnwindSafe) -> ! {
    close_descriptors();
    let code = panic::catch_unwind(run).unwrap_or(101);
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes the descriptors but the standard streams. Their owners are never dropped: see [`end_with`].
fn close_descriptors() {
    // SAFETY: takes integers. `close_range(2)` came with Linux 5.9.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } == 0 {
        return;
    }
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    // Collected first, because the list has the descriptor of the directory.
    let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    for descriptor in names.iter().filter_map(|name| name.to_str()?.parse().ok()) {
        if descriptor > 2 {
            // SAFETY: takes an integer.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// Waits for a signal, all of which are blocked. Returns `None` if there is none within `timeout`.
pub(crate) fn wait_for_signal(timeout: Option<Duration>) -> Option<i32> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos() as _,
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the set and the timeout are valid for the call, which accepts null pointers for the
    // information and for no timeout.
    let signal = unsafe { libc::sigtimedwait(SigSet::all().as_ref(), ptr::null_mut(), timeout) };
    // EINTR after this process was stopped, EAGAIN after the timeout.
    (signal > 0).then_some(signal)
}

/// Sends any signal. With a negative number, sends it to the process group.
pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: takes integers.
    unsafe { libc::kill(pid, signal) };
}

/// Reaps any child that has exited, or returns one that was stopped. Returns `None` if all others run,
/// and `ECHILD` if there is none. For an init only: such a wait takes the children of all other code.
pub(crate) fn wait_for_any_child() -> io::Result<Option<(Pid, ExitStatus)>> {
    let mut status = MaybeUninit::<libc::c_int>::zeroed();
    let flags = libc::WNOHANG | libc::WUNTRACED;
    // SAFETY: the pointer is valid for a write during the call.
    let pid = Errno::result(unsafe { libc::waitpid(-1, status.as_mut_ptr(), flags) })?;
    // SAFETY: zero is a valid integer, and the call has written one if a child has changed.
    let status = ExitStatus::from_raw(unsafe { status.assume_init() });
    Ok((pid > 0).then(|| (Pid::from_raw(pid), status)))
}
