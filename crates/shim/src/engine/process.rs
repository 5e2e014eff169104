use std::env;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::confinement::Confinement;
use super::launch::{self, LaunchError};
use super::notify_socket::NotifySocket;
use super::process_payload::ProcessPayload;
use super::{Engine, EngineError, Payload};
use crate::{
    ARGV0, BOX_DIR_VARIABLE, FILES, InstanceSpec, Invocation, PayloadSpec, Ready, open_log,
};

/// The default engine: the payload is a command, without any virtual machine around it.
///
/// The command runs in a process group of its own and dies with the shim. When it has ended, its
/// descendants are killed, also those that have left the group: the shim is their subreaper. Its
/// stdout and stderr are appended to `console.log`. Its soft limit of descriptors is 1024, whatever
/// the shim's is, as systemd has it: a command that wants more raises it itself.
///
/// The [`cpus`](PayloadSpec::cpus) and [`memory_mib`](PayloadSpec::memory_mib) of a spec bound the
/// command together with its descendants, in control groups: it gets as much time as so many
/// processors have, and the kernel kills a process that wants more memory. That takes the
/// controllers `cpu` and `memory` of `cgroups(7)`, of version 1, or of version 2 in a group that
/// systemd has delegated (`Delegate=yes` with a `DelegateSubgroup=` for the runtime, systemd 254).
/// Where no group can be made, the shim says so in `shim.stderr`, and the command is kept on so
/// many processors (`sched_setaffinity(2)`), and each of its processes within so much data of its
/// own (`RLIMIT_DATA`, `getrlimit(2)`, Linux 4.7), which a process can see, and two can exceed.
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
        let (mut report, theirs) =
            io::pipe().map_err(EngineError::system("open a pipe to the payload"))?;
        let mut child = {
            let confinement = Confinement::prepare(spec, dir)?;
            let mut command = command(spec, dir, &confinement, notify.as_ref())?;
            command.stdout(theirs);
            command
                .spawn()
                .map_err(EngineError::system("start the payload's process"))?
        };
        let mut told = String::new();
        let launched = match report.read_to_string(&mut told) {
            Ok(_) => launch::understand(&told),
            Err(error) => Err(LaunchError::Failed(error.to_string())),
        };
        if let Err(error) = launched {
            let _ = child.kill();
            let ended = child.wait();
            return Err(refused(&spec.payload, program, error, ended));
        }
        Ok(Box::new(ProcessPayload::new(child, notify)))
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
    confinement: &Confinement,
    notify: Option<&NotifySocket>,
) -> Result<Command, EngineError> {
    let PayloadSpec {
        command: payload,
        env,
        working_dir,
        stdin,
        ..
    } = &spec.payload;
    let confinement = serde_json::to_string(confinement)
        .map_err(|error| EngineError::Other(error.to_string()))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(ARGV0)
        .args(Invocation::payload_of_this_process(confinement, payload).args())
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .envs(env)
        .env("VMM_BOX_ID", &spec.id)
        .env(BOX_DIR_VARIABLE, dir)
        .current_dir(working_dir.as_deref().unwrap_or(DEFAULT_DIR.as_ref()))
        .stdin(stdin_of(stdin.as_deref())?)
        .stderr(open_log(&dir.join(FILES.console))?)
        .process_group(0);
    if let Some(notify) = notify {
        command.env("NOTIFY_SOCKET", notify.address());
    }
    Ok(command)
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
