use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, dup2_stdout, getppid};
use serde::{Deserialize, Serialize};

use super::Confinement;
use crate::signals::stop_ignoring;

pub(super) type Environment = BTreeMap<OsString, OsString>;

/// What a launcher finds in its arguments, in JSON.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct LaunchOptions {
    #[serde(flatten)]
    pub(super) confinement: Confinement,
    /// Whether stdout is a socket that the payload's environment comes from. A launcher that had it
    /// as its own would load what it preloads, before the confinement holds, and outside of it.
    pub(super) receives_environment: bool,
}

/// What the report starts with, once all that is left to do is to execute the payload. A launcher
/// that dies earlier says nothing.
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

/// More bytes than a launcher reports.
const MAX_REPORT: u64 = 4096;

/// Sends a launcher the environment of its payload, and waits until it has executed that.
pub(super) fn launch(
    mut launcher: UnixStream,
    environment: &Environment,
) -> Result<(), LaunchError> {
    let sent = launcher
        .write_all(&encode(environment))
        .and_then(|()| launcher.shutdown(Shutdown::Write));
    let mut report = Vec::new();
    let read = sent.and_then(|()| launcher.take(MAX_REPORT).read_to_end(&mut report));
    let report = String::from_utf8_lossy(&report);
    match read {
        Ok(_) => understand(&report),
        // It has ended without reading all of it; its exit status says more.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Err(LaunchError::Failed(report.into_owned()))
        }
        Err(error) => Err(LaunchError::Failed(error.to_string())),
    }
}

/// As in `/proc/<pid>/environ`.
fn encode(environment: &Environment) -> Vec<u8> {
    let variables = environment.iter();
    variables
        .flat_map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat())
        .collect()
}

fn decode(text: &[u8]) -> Environment {
    text.split(|byte| *byte == 0)
        .filter_map(|variable| {
            let equals = variable.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (&variable[..equals], &variable[equals + 1..]);
            Some((
                OsStr::from_bytes(name).into(),
                OsStr::from_bytes(value).into(),
            ))
        })
        .collect()
}

/// Understands all that a launcher reported until its stdout was closed.
fn understand(report: &str) -> Result<(), LaunchError> {
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
/// between fork and exec, and only async-signal-safe code may run there. The report goes to stdout,
/// which closes when the payload's program is executed.
pub fn become_payload(shim: u32, options: &str, command: &[OsString]) -> ! {
    let report = io::stdout().as_fd().try_clone_to_owned();
    if let Ok(report) = report {
        let mut report = File::from(report);
        let error = execute(shim, options, command, &mut report);
        let told = match error.raw_os_error() {
            Some(errno) => errno.to_string(),
            None => error.to_string(),
        };
        let _ = report.write_all(told.as_bytes());
    }
    process::exit(127)
}

/// Returns only if the program could not be executed.
fn execute(shim: u32, options: &str, command: &[OsString], report: &mut File) -> io::Error {
    let mut prepare = || -> io::Result<Option<Environment>> {
        let options: LaunchOptions = serde_json::from_str(options)?;
        let environment = match options.receives_environment {
            true => {
                let mut text = Vec::new();
                report.read_to_end(&mut text)?;
                Some(decode(&text))
            }
            false => None,
        };
        dup2_stdout(io::stderr())?;
        // Inherited from the shim, and kept across exec.
        SigSet::empty().thread_set_mask()?;
        // What nohup(1), or a runtime, has ignored is none of the payload's business.
        stop_ignoring(1..=64)?;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(DESCRIPTORS), hard)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It takes effect only from now on: the shim may be gone already, and what was received
        // incomplete.
        if getppid() != Pid::from_raw(shim.cast_signed()) {
            return Err(io::Error::other("the shim is gone"));
        }
        options.confinement.apply()?;
        write!(report, "{ABOUT_TO_EXECUTE}")?;
        Ok(environment)
    };
    let Some((program, args)) = command.split_first() else {
        return io::Error::other("no command");
    };
    let mut command = Command::new(program);
    command.args(args);
    match prepare() {
        Ok(None) => command.exec(),
        // The program is looked for in the `PATH` of this environment.
        Ok(Some(environment)) => command.env_clear().envs(environment).exec(),
        Err(error) => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_survives_its_wire_form() {
        let variables = [("PATH", "/bin"), ("EMPTY", ""), ("LINES", "a=b\nc=d")];
        let mut environment: Environment = variables
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        environment.insert("BYTES".into(), OsStr::from_bytes(b"\xff").into());
        assert_eq!(decode(&encode(&environment)), environment);
        assert_eq!(decode(b""), Environment::new());
    }

    #[test]
    fn only_a_launcher_that_was_about_to_execute_has_executed() {
        let failed = |told: &str| Err(LaunchError::Failed(told.to_owned()));
        assert_eq!(understand(">"), Ok(()));
        assert_eq!(understand(">2"), Err(LaunchError::Refused(Errno::ENOENT)));
        assert_eq!(understand(""), failed(""));
        assert_eq!(understand("2"), failed("2"));
        assert_eq!(understand(">nul"), failed("nul"));
    }

    #[test]
    fn a_report_without_an_end_is_read_in_part() {
        let (launcher, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || while theirs.write_all(b"xxxx").is_ok() {});
        match launch(launcher, &Environment::new()) {
            Err(LaunchError::Failed(text)) => assert_eq!(text.len() as u64, MAX_REPORT),
            other => panic!("{other:?}"),
        }
        writer.join().unwrap();
    }
}
