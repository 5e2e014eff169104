use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, dup2_stdout, getppid};

use super::Confinement;
use crate::ignored_signals::stop_ignoring;

/// What the report starts with, once all that is left to do is to execute the payload. A launcher
/// that dies earlier, by what the payload's environment does to its libraries, says nothing.
const ABOUT_TO_EXECUTE: char = '>';

/// How many descriptors a payload may have unless it raises the limit itself, within the hard one:
/// what comes after them `select(2)` cannot wait for.
const DESCRIPTORS: u64 = 1024;

/// Why a payload was not executed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LaunchError {
    /// The kernel refused to, with this errno.
    Refused(Errno),
    /// The launcher did not get that far, and says this, if anything.
    Failed(String),
}

/// Understands all that a launcher reported until its stdout was closed.
pub(super) fn understand(report: &str) -> Result<(), LaunchError> {
    match report.strip_prefix(ABOUT_TO_EXECUTE) {
        Some("") => Ok(()),
        Some(refusal) => Err(match refusal.parse() {
            Ok(errno) => LaunchError::Refused(Errno::from_raw(errno)),
            Err(_) => LaunchError::Failed(refusal.to_owned()),
        }),
        None => Err(LaunchError::Failed(report.to_owned())),
    }
}

/// Turns this process into a confined payload that dies with `shim`, its parent.
///
/// A program in between, because binding a child's life to its parent's takes a system call
/// between fork and exec, and only async-signal-safe code may run there. Stdout is the pipe for the
/// report; it closes when the payload's program is executed.
pub(crate) fn become_payload(shim: u32, confinement: &str, command: &[OsString]) -> ! {
    let report = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(report) = report {
        let mut report = File::from(report);
        let error = execute(shim, confinement, command, &mut report);
        let told = match error.raw_os_error() {
            Some(errno) => errno.to_string(),
            None => error.to_string(),
        };
        let _ = report.write_all(told.as_bytes());
    }
    process::exit(127)
}

/// Returns only if the program could not be executed.
fn execute(shim: u32, confinement: &str, command: &[OsString], report: &mut File) -> io::Error {
    let mut prepare = || -> io::Result<()> {
        dup2_stdout(io::stderr())?;
        // Inherited from the shim, and kept across exec.
        SigSet::empty().thread_set_mask()?;
        // What nohup(1), or a runtime, has ignored is none of the payload's business.
        stop_ignoring(1..=64)?;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(DESCRIPTORS), hard)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It takes effect only from now on: the shim may be gone already.
        if getppid() != Pid::from_raw(shim.cast_signed()) {
            return Err(io::Error::other("the shim is gone"));
        }
        serde_json::from_str::<Confinement>(confinement)?.apply()?;
        write!(report, "{ABOUT_TO_EXECUTE}")
    };
    let Some((program, args)) = command.split_first() else {
        return io::Error::other("no command");
    };
    match prepare() {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_launcher_that_was_about_to_execute_has_executed() {
        let failed = |told: &str| Err(LaunchError::Failed(told.to_owned()));
        assert_eq!(understand(">"), Ok(()));
        assert_eq!(understand(">2"), Err(LaunchError::Refused(Errno::ENOENT)));
        assert_eq!(understand(""), failed(""));
        assert_eq!(understand("2"), failed("2"));
        assert_eq!(understand(">nul"), failed("nul"));
    }
}
