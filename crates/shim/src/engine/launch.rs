use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, dup2_stdout, getppid};

use crate::ignored_signals::stop_ignoring;

/// Turns this process into a payload that dies with `shim`, its parent.
///
/// A program in between, because binding a child's life to its parent's takes a system call
/// between fork and exec, and only async-signal-safe code may run there. Stdout is the pipe on
/// which a failure is reported, as an errno; it closes when the payload's program is executed.
pub(crate) fn become_payload(shim: u32, command: &[OsString]) -> ! {
    let report = io::stdout().as_fd().try_clone_to_owned();
    let error = execute(shim, command);
    if let Ok(report) = report {
        let told = match error.raw_os_error() {
            Some(errno) => errno.to_string(),
            None => error.to_string(),
        };
        let _ = File::from(report).write_all(told.as_bytes());
    }
    process::exit(127)
}

/// Returns only if the program could not be executed.
fn execute(shim: u32, command: &[OsString]) -> io::Error {
    let prepare = || -> io::Result<()> {
        dup2_stdout(io::stderr())?;
        // Inherited from the shim, and kept across exec.
        SigSet::empty().thread_set_mask()?;
        // What nohup(1), or a runtime, has ignored is none of the payload's business.
        stop_ignoring(1..=64)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It takes effect only from now on: the shim may be gone already.
        if getppid() != Pid::from_raw(shim.cast_signed()) {
            return Err(io::Error::other("the shim is gone"));
        }
        Ok(())
    };
    let Some((program, args)) = command.split_first() else {
        return io::Error::other("no command");
    };
    match prepare() {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}
