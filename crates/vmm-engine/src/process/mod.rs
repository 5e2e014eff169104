mod command;
mod console;
mod console_log;
mod executions;
mod limits;
mod notify_socket;
mod oom_kills;
mod payload;

use std::io::PipeWriter;
use std::path::Path;

use pidfd_spawn::Command;
use vmm_protocol::{BoxDir, HostPolicy, InstanceSpec, PayloadSpec, Ready};

use self::console::Console;
use self::executions::Executions;
use self::limits::Limits;
use self::notify_socket::NotifySocket;
pub(crate) use self::payload::ProcessPayload;
use crate::{Engine, EngineError, Payload};

/// The default engine: the payload is a command, without a virtual machine.
///
/// The command runs in its own process group and dies with the shim. After it has exited, the
/// engine kills its descendants, including those that have left the process group: the shim is
/// their subreaper. As with systemd, the soft limit of file descriptors is 1024; a command that needs
/// more raises it itself. Needs Linux 5.4.
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
/// The fields [`cpus`](vmm_protocol::PayloadSpec::cpus), [`memory_mib`](vmm_protocol::PayloadSpec::memory_mib) and
/// [`pids`](vmm_protocol::PayloadSpec::pids) of a spec limit the command together with its descendants, through
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

impl Engine for Process {
    fn name(&self) -> &str {
        "process"
    }

    fn validate(&self, payload: &PayloadSpec, _: &HostPolicy) -> Result<(), EngineError> {
        command::validate(payload).map(drop)
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        Ok(Box::new(spawn(spec, dir, |_, _| {})?))
    }
}

/// Starts the command of the spec, with its limits and its console. `prepare` can add to the command,
/// and can keep the pipe to the console log until it calls [`ProcessPayload::wait_after`].
pub(crate) fn spawn(
    spec: &InstanceSpec,
    dir: &Path,
    prepare: impl FnOnce(&mut Command, PipeWriter),
) -> Result<ProcessPayload, EngineError> {
    let program = command::validate(&spec.payload)?;
    command::check_working_dir(&spec.payload)?;
    let box_dir = BoxDir::new(dir);
    let notify = match spec.payload.ready {
        Ready::Started => None,
        Ready::Notified => Some(NotifySocket::bind(&box_dir)?),
    };
    let limits = Limits::prepare(spec, dir)?;
    let (console, output) = Console::start(box_dir, spec.payload.console)?;
    let command = command::payload_command(spec, dir, &limits, notify.as_ref(), &output);
    // The command, and with it this end of the pipe, is dropped before the console is finished.
    let spawned = command.and_then(move |mut command| {
        prepare(&mut command, output);
        let spawned = command.spawn();
        spawned.map_err(|error| command::start_error(&spec.payload, program, error))
    });
    match spawned {
        Ok(child) => {
            let executions = Executions::new(spec.clone(), dir.to_owned(), limits);
            Ok(ProcessPayload::new(child, notify, console, executions))
        }
        Err(error) => {
            console.finish();
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_rejected_before_the_start() {
        let mut payload = PayloadSpec::command(["true"]);
        payload.options.insert("kernel".to_owned(), "linux".into());
        let error = Process
            .validate(&payload, &HostPolicy::default())
            .unwrap_err();
        assert!(error.to_string().contains("\"kernel\""), "{error}");
    }

    #[test]
    fn a_limit_of_zero_is_rejected_before_the_start() {
        let limits: [fn(&mut PayloadSpec); 3] = [
            |payload| payload.cpus = Some(0),
            |payload| payload.memory_mib = Some(0),
            |payload| payload.pids = Some(0),
        ];
        for limit in limits {
            let mut payload = PayloadSpec::command(["true"]);
            assert!(Process.validate(&payload, &HostPolicy::default()).is_ok());
            limit(&mut payload);
            let error = Process
                .validate(&payload, &HostPolicy::default())
                .unwrap_err();
            assert!(matches!(error, EngineError::Spec(_)), "{error:?}");
        }
    }
}
