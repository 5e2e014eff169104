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

use vmm_protocol::{ARGV0, BOX_DIR_VARIABLE, InstanceSpec, Invocation, PayloadSpec, Ready};

use self::confinement::Confinement;
use self::console::Console;
pub use self::launch::become_payload;
use self::launch::{Environment, LaunchError, LaunchOptions};
use self::notify_socket::NotifySocket;
use self::payload::ProcessPayload;
use crate::{Engine, EngineError, Payload};

/// The default engine: the payload is a command, without any virtual machine around it.
///
/// The command runs in a process group of its own and dies with the shim. When it has ended, its
/// descendants are killed, also those that have left the group: the shim is their subreaper. Its
/// environment holds from its own program on: the launcher that the shim executes before, to confine
/// the command, loads no library that it names. Its soft limit of descriptors is 1024, whatever the
/// shim's is, as systemd has it: a command that wants more raises it itself.
///
/// Its stdout and stderr are one pipe, from which the shim appends to `console.log`. Before that
/// file exceeds [`max_bytes`](vmm_protocol::ConsoleOptions::max_bytes), the shim renames it to
/// `console.log.1`, that one to `console.log.2`, and so on; the oldest file is deleted, and
/// `console.dropped` counts its bytes. A file ends with a whole line where it can. A full disk does
/// not block the command: the shim drops what it cannot write, and puts a line
/// `[vmm-shim: N bytes dropped]` where that is missing as soon as the disk takes it. When the command
/// and its descendants have ended, the shim stores what is in the pipe before it records the exit;
/// SIGKILL to the shim loses that.
///
/// The [`cpus`](PayloadSpec::cpus), [`memory_mib`](PayloadSpec::memory_mib) and
/// [`pids`](PayloadSpec::pids) of a spec bound the command together with its descendants, in
/// control groups: it gets as much time as so many processors have, the kernel kills a process that
/// wants more memory, and a fork that would make one process or thread too many fails with EAGAIN.
/// That takes the controllers `cpu`, `memory` and `pids` of `cgroups(7)`, of version 1, or of
/// version 2 in a group that systemd has delegated (`Delegate=yes` with a `DelegateSubgroup=` for
/// the runtime, systemd 254).
///
/// Where no group can be made, the shim says so in `shim.stderr`, and the command is kept on so
/// many processors (`sched_setaffinity(2)`), and each of its processes within so much data of its
/// own (`RLIMIT_DATA`, `getrlimit(2)`, Linux 4.7), which a process can see, and two can exceed. Its
/// processes are not limited then: `RLIMIT_NPROC` counts all processes of a user, not those of one
/// box, and does not bind root.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_DIR: &str = "/";

impl Engine for Process {
    fn name(&self) -> &str {
        "process"
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let program = check(&spec.payload)?;
        let notify = match spec.payload.ready {
            Ready::Started => None,
            Ready::Notified => Some(NotifySocket::bind(dir)?),
        };
        let (launcher, theirs) =
            UnixStream::pair().map_err(EngineError::system("open a socket to the payload"))?;
        let (mut child, console) = {
            let confinement = Confinement::prepare(spec, dir)?;
            let (console, output) = Console::start(dir, spec.payload.console)?;
            let mut command = command(spec, dir, confinement, output)?;
            command.stdout(OwnedFd::from(theirs));
            let child = command
                .spawn()
                .map_err(EngineError::system("start the payload's process"))?;
            (child, console)
        };
        let environment = environment(spec, dir, notify.as_ref());
        if let Err(error) = launch::launch(launcher, &environment) {
            let _ = child.kill();
            let ended = child.wait();
            console.finish();
            return Err(refused(&spec.payload, program, error, ended));
        }
        Ok(Box::new(ProcessPayload::new(child, notify, console)))
    }
}

/// The program, if the spec makes sense.
fn check(payload: &PayloadSpec) -> Result<PathBuf, EngineError> {
    let Some(program) = payload.command.first() else {
        return Err(EngineError::Spec("the spec has no command".to_owned()));
    };
    let env = payload.env.iter().flat_map(|(name, value)| [name, value]);
    if payload
        .command
        .iter()
        .chain(env)
        .any(|text| text.contains('\0'))
    {
        let message = "the command or its environment holds a NUL byte";
        return Err(EngineError::Spec(message.to_owned()));
    }
    if !payload.console.is_valid() {
        let message = "the console needs at least 4096 bytes per file, and 1 file";
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

/// This very program, which is to become the payload.
fn command(
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
        // What a runtime knows it by if the shim is killed now.
        .env(BOX_DIR_VARIABLE, dir)
        .current_dir(working_dir.as_deref().unwrap_or(DEFAULT_DIR.as_ref()))
        .stdin(stdin_of(stdin.as_deref())?)
        .stderr(output)
        .process_group(0);
    Ok(command)
}

/// Of the payload.
fn environment(spec: &InstanceSpec, dir: &Path, notify: Option<&NotifySocket>) -> Environment {
    let mut environment = Environment::from([("PATH".into(), DEFAULT_PATH.into())]);
    let env = spec.payload.env.iter();
    environment.extend(env.map(|(name, value)| (name.into(), value.into())));
    environment.insert("VMM_BOX_ID".into(), spec.id.clone().into());
    environment.insert(BOX_DIR_VARIABLE.into(), dir.into());
    environment.extend(notify.map(|socket| ("NOTIFY_SOCKET".into(), socket.address().into())));
    environment
}

fn stdin_of(text: Option<&str>) -> Result<Stdio, EngineError> {
    let Some(text) = text else {
        return Ok(Stdio::null());
    };
    let in_memory = || -> io::Result<File> {
        let mut file = File::from(memfd_create("stdin", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(text.as_bytes())?;
        file.rewind()?;
        Ok(file)
    };
    in_memory()
        .map(Stdio::from)
        .map_err(EngineError::system("prepare the payload's stdin"))
}

fn refused(
    payload: &PayloadSpec,
    program: PathBuf,
    error: LaunchError,
    ended: io::Result<ExitStatus>,
) -> EngineError {
    match (error, ended) {
        // Of a script without its interpreter, execve(2) says the same as of no script.
        (LaunchError::Refused(Errno::ENOENT), _) if is_there(payload, &program) => {
            EngineError::NotExecutable {
                program,
                source: io::Error::new(io::ErrorKind::NotFound, "its interpreter does not exist"),
            }
        }
        (LaunchError::Refused(Errno::ENOENT | Errno::ENOTDIR), _) => {
            EngineError::NotFound { program }
        }
        (LaunchError::Refused(errno), _) => EngineError::NotExecutable {
            program,
            source: errno.into(),
        },
        (LaunchError::Failed(told), Ok(status)) if told.is_empty() => EngineError::Other(format!(
            "the launcher ended before it could execute the payload: {status}; the console may \
             tell why"
        )),
        (LaunchError::Failed(told), _) => {
            EngineError::Other(format!("cannot launch the payload: {told}"))
        }
    }
}

/// Where `execvp(3)` looks for it.
fn is_there(payload: &PayloadSpec, program: &Path) -> bool {
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
