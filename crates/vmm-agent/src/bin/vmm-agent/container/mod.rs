//! The command `vmm-agent container`: runs the processes of containers in a guest.
//!
//! The host executes it in the guest, as the program of an execution. `init` and `exec` become the process
//! of the container, so its exit status is that of the execution. `init` creates the control group and the
//! mount namespace of the container, and `exec` joins them. The agent creates both in the PID namespace of the
//! container.

mod control_group;
mod credentials;
mod devices;
mod early_signals;
mod error;
mod mounts;
mod namespaces;
mod pid_namespaces;
mod process;
mod protected_paths;
mod sysctls;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use pidfd_spawn::Command;
use vmm_protocol::pod::{ContainerSpec, PodDir, ProcessSpec};
use vmm_protocol::{read_file, with_causes};

use control_group::ContainerGroup;
use early_signals::EarlySignals;
pub(crate) use error::ContainerError;
pub(crate) use pid_namespaces::PidNamespaces;

/// The longest file with a spec. An environment has at most 128 KiB for each variable, `execve(2)`.
const MAX_SPEC_BYTES: u64 = 4 << 20;

const USAGE: &str =
    "usage: vmm-agent container init|exec|signal|freeze|thaw|stats|remove ID [ARGUMENT]";

/// Runs the command with these arguments.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args
        .into_iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm-agent: {}", with_causes(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &[&str]) -> Result<(), ContainerError> {
    let (action, id, argument) = match *args {
        [action, id] => (action, id, ""),
        [action, id, argument] => (action, id, argument),
        _ => return Err(ContainerError::Usage(USAGE)),
    };
    let group = ContainerGroup::of(id);
    match action {
        "init" => return init(id, &group),
        "remove" => {
            group.print_stats()?;
            group.remove()?;
            namespaces::forget(id);
            return Ok(());
        }
        _ => {}
    }
    let owner = namespaces::wait_ready(id)?;
    match action {
        "exec" => exec(id, argument, &owner, &group),
        "signal" => {
            let signal = argument.parse();
            group.signal(signal.map_err(|_| ContainerError::Usage(USAGE))?)
        }
        "freeze" => group.freeze(),
        "thaw" => group.thaw(),
        "stats" => group.print_stats(),
        _ => Err(ContainerError::Usage(USAGE)),
    }
}

/// Becomes the first process of a container.
fn init(id: &str, group: &ContainerGroup) -> Result<(), ContainerError> {
    let signals = EarlySignals::hold()?;
    let prepared = prepare_init(id, group);
    // A signal counts also if the process cannot be prepared.
    signals.check()?;
    Err(ContainerError::Exec(prepared?.exec()))
}

/// Creates the container. Returns the command that this process becomes.
fn prepare_init(id: &str, group: &ContainerGroup) -> Result<Command, ContainerError> {
    let dir = PodDir::in_guest();
    let container: ContainerSpec = read_spec(&dir.container_spec(id))?;
    let process: ProcessSpec = read_spec(&dir.process_spec(id, ""))?;
    process::set_oom_score(&process)?;
    group.create(&container.resources)?;
    group.join()?;
    let record = namespaces::create(id, &container)?;
    sysctls::set(&container.sysctls)?;
    mounts::enter_root(&dir, id, &container)?;
    process::create_working_dir(&process)?;
    record.write()?;
    process::prepare(&process)
}

/// Becomes a further process of a container.
fn exec(
    id: &str,
    exec_id: &str,
    owner: &str,
    group: &ContainerGroup,
) -> Result<(), ContainerError> {
    let process: ProcessSpec = read_spec(&PodDir::in_guest().process_spec(id, exec_id))?;
    process::set_oom_score(&process)?;
    group.join()?;
    namespaces::join(owner)?;
    Err(ContainerError::Exec(process::prepare(&process)?.exec()))
}

fn read_spec<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ContainerError> {
    let error = || ContainerError::system(format!("read {}", path.display()));
    let text = read_file(path, MAX_SPEC_BYTES).map_err(error())?;
    serde_json::from_slice(&text).map_err(|source| error()(source.into()))
}
