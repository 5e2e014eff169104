mod confinement;
mod console;
mod console_log;
mod launch;
mod notify_socket;
mod payload;

use std::env;
use std::fs::File;
use std::io::{self, PipeWriter, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use vmm_protocol::{ARGV0, BOX_DIR_VARIABLE, BoxDir, InstanceSpec, Invocation, PayloadSpec, Ready};

use self::confinement::Confinement;
use self::console::Console;
pub use self::launch::become_payload;
use self::launch::{Environment, LaunchError, LaunchOptions};
use self::notify_socket::NotifySocket;
use self::payload::ProcessPayload;
use crate::{Engine, EngineError, Payload};

/// The default engine: the payload is a command, without a virtual machine.
///
/// The command runs in its own process group and dies with the shim. After it has exited, the
/// engine kills its descendants, including those that have left the process group: the shim is
/// their subreaper. The shim first executes a launcher, which confines itself and then executes the
/// command. The environment of the spec applies from the command on, so the launcher does not load
/// a library that `LD_PRELOAD` names. As with systemd, the soft limit of file descriptors is 1024;
/// a command that needs more raises it itself.
///
/// # Output
///
/// The stdout and stderr of the command are one pipe, from which the shim appends to `console.log`.
/// Before that file exceeds [`max_bytes`](vmm_protocol::ConsoleOptions::max_bytes), the shim
/// renames it to `console.log.1`, the previous one to `console.log.2`, and so on. It deletes the
/// oldest file, and adds its size to `console.dropped`. A file ends with a complete line, unless a
/// line is longer than a file.
///
/// A full disk does not block the command: the shim drops the output that it cannot write. As soon
/// as the disk has space again, it writes a line `[vmm-shim: N bytes dropped]` in place of that
/// output.
///
/// After the command and its descendants have exited, the shim writes the content of the pipe
/// before it records the exit. If the shim is killed with SIGKILL, that content is lost.
///
/// # Limits
///
/// The fields [`cpus`](PayloadSpec::cpus), [`memory_mib`](PayloadSpec::memory_mib) and
/// [`pids`](PayloadSpec::pids) of a spec limit the command together with its descendants, through
/// control groups:
///
/// * The kernel grants as much CPU time as that number of CPUs has.
/// * The kernel kills a process if they need more memory.
/// * A fork beyond the limit of processes and threads fails with EAGAIN.
///
/// This needs the controllers `cpu`, `memory` and `pids` of `cgroups(7)`: either of version 1, or
/// of version 2 in a group that systemd has delegated (`Delegate=yes`, and a `DelegateSubgroup=`
/// for the runtime; systemd 254).
///
/// If no control group can be created, the shim reports it in `shim.stderr`, and uses these
/// substitutes:
///
/// * A CPU affinity for that number of CPUs (`sched_setaffinity(2)`).
/// * A data limit for each process (`RLIMIT_DATA`, `getrlimit(2)`, Linux 4.7). Two processes
///   together can exceed it.
/// * No limit on processes: `RLIMIT_NPROC` counts all processes of a user rather than those of a
///   box, and does not apply to root.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_DIR: &str = "/";

impl Engine for Process {
    fn name(&self) -> &str {
        "process"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let program = validate(&spec.payload)?;
        let box_dir = BoxDir::new(dir);
        let notify = match spec.payload.ready {
            Ready::Started => None,
            Ready::Notified => Some(NotifySocket::bind(&box_dir)?),
        };
        let (launcher, launcher_stdout) =
            UnixStream::pair().map_err(EngineError::system("open a socket to the payload"))?;
        let (mut child, console) = {
            let confinement = Confinement::prepare(spec, dir)?;
            let (console, output) = Console::start(box_dir, spec.payload.console)?;
            let mut command = launcher_command(spec, dir, confinement, output)?;
            command.stdout(OwnedFd::from(launcher_stdout));
            let child = command
                .spawn()
                .map_err(EngineError::system("start the payload's process"))?;
            (child, console)
        };
        let environment = environment(spec, dir, notify.as_ref());
        if let Err(error) = launch::launch(launcher, &environment) {
            let _ = child.kill();
            let status = child.wait();
            console.finish();
            return Err(start_error(&spec.payload, program, error, status));
        }
        Ok(Box::new(ProcessPayload::new(child, notify, console)))
    }
}

/// Validates the spec, and returns the program.
fn validate(payload: &PayloadSpec) -> Result<PathBuf, EngineError> {
    let Some(program) = payload.command.first() else {
        return Err(EngineError::Spec("the command is empty".to_owned()));
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
    if let Some(dir) = &payload.working_dir
        && !dir.is_dir()
    {
        let dir = dir.display();
        let message = format!("the working directory {dir} does not exist");
        return Err(EngineError::Spec(message));
    }
    Ok(program.into())
}

/// Returns the command that starts this program as a launcher, which becomes the payload.
fn launcher_command(
    spec: &InstanceSpec,
    dir: &Path,
    confinement: Confinement,
    output: PipeWriter,
) -> Result<Command, EngineError> {
    let PayloadSpec {
        command: payload,
        working_dir,
        stdin,
        ..
    } = &spec.payload;
    let options = LaunchOptions {
        confinement,
        receives_environment: true,
    };
    let options =
        serde_json::to_string(&options).map_err(|error| EngineError::Other(error.to_string()))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(ARGV0)
        .args(Invocation::payload_of_this_process(options, payload).args())
        .env_clear()
        // The runtime identifies the launcher by it if the shim is killed now.
        .env(BOX_DIR_VARIABLE, dir)
        .current_dir(working_dir.as_deref().unwrap_or(DEFAULT_DIR.as_ref()))
        .stdin(payload_stdin(stdin.as_deref())?)
        .stderr(output)
        .process_group(0);
    Ok(command)
}

/// Returns the environment of the payload.
fn environment(spec: &InstanceSpec, dir: &Path, notify: Option<&NotifySocket>) -> Environment {
    let mut environment = Environment::from([("PATH".into(), DEFAULT_PATH.into())]);
    let env = spec.payload.env.iter();
    environment.extend(env.map(|(name, value)| (name.into(), value.into())));
    environment.insert("VMM_BOX_ID".into(), spec.id.clone().into());
    environment.insert(BOX_DIR_VARIABLE.into(), dir.into());
    environment.extend(notify.map(|socket| ("NOTIFY_SOCKET".into(), socket.address().into())));
    environment
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
        .map(Stdio::from)
        .map_err(EngineError::system("prepare the payload's stdin"))
}

/// Converts the error of a launcher. `status` is the exit status of the launcher.
fn start_error(
    payload: &PayloadSpec,
    program: PathBuf,
    error: LaunchError,
    status: io::Result<ExitStatus>,
) -> EngineError {
    match (error, status) {
        // execve(2) also returns ENOENT for a script with a missing interpreter.
        (LaunchError::Exec(Errno::ENOENT), _) if program_exists(payload, &program) => {
            EngineError::NotExecutable {
                program,
                source: io::Error::new(io::ErrorKind::NotFound, "its interpreter was not found"),
            }
        }
        (LaunchError::Exec(Errno::ENOENT | Errno::ENOTDIR), _) => EngineError::NotFound { program },
        (LaunchError::Exec(errno), _) => EngineError::NotExecutable {
            program,
            source: errno.into(),
        },
        (LaunchError::Setup(message), Ok(status)) if message.is_empty() => {
            EngineError::Other(format!(
                "the launcher ended before it executed the payload ({status}); see the console log"
            ))
        }
        (LaunchError::Setup(message), _) => {
            EngineError::Other(format!("cannot launch the payload: {message}"))
        }
    }
}

/// Searches for the program as `execvp(3)` does.
fn program_exists(payload: &PayloadSpec, program: &Path) -> bool {
    let dir = payload
        .working_dir
        .as_deref()
        .unwrap_or(DEFAULT_DIR.as_ref());
    if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        return dir.join(program).exists();
    }
    let path = payload.env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    env::split_paths(path).any(|entry| dir.join(entry).join(program).exists())
}
