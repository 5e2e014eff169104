//! The command of a payload: its limits, environment and streams, and the errors of its start.

use std::env;
use std::fs::File;
use std::io::{self, PipeWriter, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::libc::{ENOENT, ENOTDIR, SIGKILL};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource as NixResource, getrlimit};
use pidfd_spawn::{Command, Resource, SpawnError, Stdio, Step};
use vmm_protocol::frames::ExecSpec;
use vmm_protocol::{BOX_DIR_VARIABLE, DEFAULT_PATH, InstanceSpec, PayloadSpec};

use super::limits::Limits;
use super::notify_socket::NotifySocket;
use crate::EngineError;

const DEFAULT_DIR: &str = "/";

/// The soft limit of file descriptors of a payload: `select(2)` does not support higher
/// descriptors. A payload can raise it up to the hard limit.
const MAX_DESCRIPTORS: u64 = 1024;

/// Validates the fields of the spec, and returns the program.
pub(super) fn validate(payload: &PayloadSpec) -> Result<PathBuf, EngineError> {
    let Some(program) = payload.command.first() else {
        return Err(empty_command());
    };
    let env = payload.env.iter().flat_map(|(name, value)| [name, value]);
    if payload
        .command
        .iter()
        .chain(env)
        .any(|text| text.contains('\0'))
    {
        let message = "the command or its environment contains a NUL byte";
        return Err(EngineError::Spec(message.to_owned()));
    }
    if !payload.console.is_valid() {
        let message = "console.max_bytes must be at least 4096, and console.files at least 1";
        return Err(EngineError::Spec(message.to_owned()));
    }
    if [payload.cpus, payload.memory_mib, payload.pids].contains(&Some(0)) {
        let message = "cpus, memory_mib and pids must be at least 1";
        return Err(EngineError::Spec(message.to_owned()));
    }
    if let Some(name) = payload.options.keys().next() {
        let message = format!("the engine process has no option {name:?}; remove it");
        return Err(EngineError::Spec(message));
    }
    Ok(program.into())
}

pub(super) fn check_working_dir(payload: &PayloadSpec) -> Result<(), EngineError> {
    match &payload.working_dir {
        Some(dir) if !dir.is_dir() => {
            let dir = dir.display();
            let message = format!("the working directory {dir} does not exist");
            Err(EngineError::Spec(message))
        }
        _ => Ok(()),
    }
}

/// Returns the command of the payload, which dies with this process.
pub(super) fn payload_command(
    spec: &InstanceSpec,
    dir: &Path,
    limits: &Limits,
    notify: Option<&NotifySocket>,
    output: &PipeWriter,
) -> Result<Command, EngineError> {
    let payload = &spec.payload;
    let mut command = box_command(spec, dir, limits, &payload.command)?;
    let clone_output = || {
        let clone = output.try_clone().map(OwnedFd::from);
        clone.map_err(EngineError::system("prepare the payload"))
    };
    command
        .current_dir(working_dir(payload))
        .stdin(payload_stdin(payload.stdin.as_deref())?)
        .stdout(clone_output()?)
        .stderr(clone_output()?)
        .process_group(0);
    if let Some(socket) = notify {
        command.env("NOTIFY_SOCKET", socket.address());
    }
    Ok(command)
}

/// Returns the command of an execution beside the payload. It has the limits and the environment of
/// the payload, and dies with this process.
pub(super) fn execution_command(
    spec: &InstanceSpec,
    dir: &Path,
    limits: &Limits,
    exec: &ExecSpec,
) -> Result<Command, EngineError> {
    if exec.user.is_some() {
        let message = "the engine process runs commands as the user of the payload only";
        return Err(EngineError::Spec(message.to_owned()));
    }
    let mut command = box_command(spec, dir, limits, &exec.command)?;
    let dir = exec.working_dir.as_deref();
    command
        .current_dir(dir.unwrap_or_else(|| working_dir(&spec.payload)))
        .envs(&exec.env);
    Ok(command)
}

fn working_dir(payload: &PayloadSpec) -> &Path {
    payload
        .working_dir
        .as_deref()
        .unwrap_or(DEFAULT_DIR.as_ref())
}

/// Returns a command with the environment and the limits of the box.
fn box_command(
    spec: &InstanceSpec,
    dir: &Path,
    limits: &Limits,
    argv: &[String],
) -> Result<Command, EngineError> {
    let (program, args) = argv.split_first().ok_or_else(empty_command)?;
    let (soft, hard) = getrlimit(NixResource::RLIMIT_NOFILE)
        .map_err(|errno| EngineError::system("prepare the payload")(errno.into()))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .envs(&spec.payload.env)
        .env("VMM_BOX_ID", &spec.id)
        .env(BOX_DIR_VARIABLE, dir)
        // The shim may have inherited ignored signals from nohup(1) or its runtime.
        .reset_ignored_signals(true)
        .parent_death_signal(SIGKILL)
        .rlimit(Resource::Nofile, soft.min(MAX_DESCRIPTORS), hard);
    limits
        .apply(&mut command)
        .map_err(EngineError::system("limit the payload"))?;
    Ok(command)
}

fn empty_command() -> EngineError {
    EngineError::Spec("the command is empty".to_owned())
}

/// Returns a file in memory with the text, or `/dev/null` without a text.
fn payload_stdin(text: Option<&str>) -> Result<Stdio, EngineError> {
    let Some(text) = text else {
        return Ok(Stdio::null());
    };
    let memory_file = || -> io::Result<File> {
        let mut file = File::from(memfd_create("stdin", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        file.rewind()?;
        Ok(file)
    };
    memory_file()
        .map(|file| Stdio::from(OwnedFd::from(file)))
        .map_err(EngineError::system("prepare the payload's stdin"))
}

/// Converts the error of a payload that could not be started.
pub(super) fn start_error(
    payload: &PayloadSpec,
    program: PathBuf,
    error: SpawnError,
) -> EngineError {
    match (error.step(), error.raw_os_error()) {
        // execve(2) also returns ENOENT for a script with a missing interpreter.
        (Step::Exec, Some(ENOENT)) if program_exists(payload, &program) => {
            EngineError::NotExecutable {
                program,
                source: io::Error::new(io::ErrorKind::NotFound, "its interpreter was not found"),
            }
        }
        (Step::Exec, Some(ENOENT | ENOTDIR)) => EngineError::NotFound { program },
        (Step::Exec, Some(errno)) => EngineError::NotExecutable {
            program,
            source: io::Error::from_raw_os_error(errno),
        },
        _ => EngineError::system("start the payload")(error.into()),
    }
}

/// Searches for the program as `execvp(3)` does.
fn program_exists(payload: &PayloadSpec, program: &Path) -> bool {
    let dir = working_dir(payload);
    if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        return dir.join(program).exists();
    }
    let path = payload.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    env::split_paths(path).any(|entry| dir.join(entry).join(program).exists())
}
