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

/// The options of a launcher, which it reads from its arguments as JSON.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct LaunchOptions {
    #[serde(flatten)]
    pub(super) confinement: Confinement,
    /// Whether the launcher reads the payload's environment from its stdout, which is a socket.
    ///
    /// If the environment were the launcher's own, the dynamic loader would load the libraries of
    /// `LD_PRELOAD` into the launcher, before the confinement applies.
    pub(super) receives_environment: bool,
}

/// The first character of a launcher's report. The launcher writes it immediately before it
/// executes the payload, so it is missing if the launcher dies earlier.
const ABOUT_TO_EXECUTE: char = '>';

/// The soft limit of file descriptors of a payload: `select(2)` does not support higher
/// descriptors. A payload can raise it up to the hard limit.
const MAX_DESCRIPTORS: u64 = 1024;

/// The error of a launcher that has not executed its payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LaunchError {
    /// `execve(2)` failed with this errno.
    Exec(Errno),
    /// The launcher failed earlier, with this message. The message is empty if the launcher died.
    Setup(String),
}

/// The maximum size of a launcher's report.
const MAX_REPORT_BYTES: u64 = 4096;

/// Sends a launcher the environment of its payload, and waits until the launcher has executed the
/// payload.
pub(super) fn launch(
    mut launcher: UnixStream,
    environment: &Environment,
) -> Result<(), LaunchError> {
    let sent = launcher
        .write_all(&encode(environment))
        .and_then(|()| launcher.shutdown(Shutdown::Write));
    let mut report = Vec::new();
    let result = sent.and_then(|()| launcher.take(MAX_REPORT_BYTES).read_to_end(&mut report));
    let report = String::from_utf8_lossy(&report);
    match result {
        Ok(_) => parse_report(&report),
        // The launcher has exited before it read everything; its exit status is more informative.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Err(LaunchError::Setup(report.into_owned()))
        }
        Err(error) => Err(LaunchError::Setup(error.to_string())),
    }
}

/// Encodes the environment in the format of `/proc/<pid>/environ`.
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

/// Parses the report of a launcher. It is complete when the kernel closes the launcher's stdout on
/// exec.
fn parse_report(report: &str) -> Result<(), LaunchError> {
    match report.strip_prefix(ABOUT_TO_EXECUTE) {
        Some("") => Ok(()),
        Some(error) => Err(match error.parse() {
            Ok(errno) => LaunchError::Exec(Errno::from_raw(errno)),
            Err(_) => LaunchError::Setup(error.to_owned()),
        }),
        None => Err(LaunchError::Setup(report.to_owned())),
    }
}

/// Turns the calling process, a launcher, into a confined payload that dies with its parent `shim`.
///
/// `options` and `command` are those of [`Invocation::Payload`](vmm_protocol::Invocation::Payload).
///
/// A launcher is necessary because only async-signal-safe code may run between fork and exec. It
/// reports to its stdout, which the kernel closes when the launcher executes the payload's program.
pub fn become_payload(shim: u32, options: &str, command: &[OsString]) -> ! {
    if let Ok(stdout) = io::stdout().as_fd().try_clone_to_owned() {
        let mut report = File::from(stdout);
        let error = execute(shim, options, command, &mut report);
        let message = match error.raw_os_error() {
            Some(errno) => errno.to_string(),
            None => error.to_string(),
        };
        let _ = report.write_all(message.as_bytes());
    }
    process::exit(127)
}

/// Confines the process and executes the command. Returns only on an error.
fn execute(shim: u32, options: &str, command: &[OsString], report: &mut File) -> io::Error {
    let mut prepare = || -> io::Result<Option<Environment>> {
        let options: LaunchOptions = serde_json::from_str(options)?;
        let environment = if options.receives_environment {
            let mut text = Vec::new();
            report.read_to_end(&mut text)?;
            Some(decode(&text))
        } else {
            None
        };
        dup2_stdout(io::stderr())?;
        // The shim blocks signals; a child inherits the mask, and exec keeps it.
        SigSet::empty().thread_set_mask()?;
        // The shim may have inherited ignored signals from nohup(1) or its runtime.
        stop_ignoring(1..=64)?;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(MAX_DESCRIPTORS), hard)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The signal is not sent for a parent that exited before the call, prctl(2). What this
        // process has received may then be incomplete, too.
        if getppid() != Pid::from_raw(shim.cast_signed()) {
            return Err(io::Error::other("the shim has exited"));
        }
        options.confinement.apply()?;
        write!(report, "{ABOUT_TO_EXECUTE}")?;
        Ok(environment)
    };
    let Some((program, args)) = command.split_first() else {
        return io::Error::other("the command is empty");
    };
    let mut command = Command::new(program);
    command.args(args);
    match prepare() {
        Ok(None) => command.exec(),
        // `exec` searches for the program in the `PATH` of this environment.
        Ok(Some(environment)) => command.env_clear().envs(environment).exec(),
        Err(error) => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_survives_encoding() {
        let variables = [("PATH", "/bin"), ("EMPTY", ""), ("LINES", "a=b\nc=d")];
        let mut environment: Environment = variables
            .map(|(name, value)| (name.into(), value.into()))
            .into();
        environment.insert("BYTES".into(), OsStr::from_bytes(b"\xff").into());
        assert_eq!(decode(&encode(&environment)), environment);
        assert_eq!(decode(b""), Environment::new());
    }

    #[test]
    fn only_a_report_with_nothing_but_the_marker_means_success() {
        let setup_error = |message: &str| Err(LaunchError::Setup(message.to_owned()));
        assert_eq!(parse_report(">"), Ok(()));
        assert_eq!(parse_report(">2"), Err(LaunchError::Exec(Errno::ENOENT)));
        assert_eq!(parse_report(""), setup_error(""));
        assert_eq!(parse_report("2"), setup_error("2"));
        assert_eq!(parse_report(">nul"), setup_error("nul"));
    }

    #[test]
    fn an_endless_report_is_truncated() {
        let (launcher, mut peer) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || while peer.write_all(b"xxxx").is_ok() {});
        match launch(launcher, &Environment::new()) {
            Err(LaunchError::Setup(text)) => assert_eq!(text.len() as u64, MAX_REPORT_BYTES),
            other => panic!("{other:?}"),
        }
        writer.join().unwrap();
    }
}
