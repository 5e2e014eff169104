mod agent;
mod command_line;
mod options;
mod payload;
mod qmp;
mod shares;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm_protocol::{InstanceSpec, PayloadSpec};

use self::command_line::{AGENT_FD, FIRST_SHARE_FD, QMP_FD};
pub use self::options::{Accelerator, Disk, DiskAccess, QemuOptions};
use self::payload::QemuPayload;
use self::qmp::Monitor;
pub use self::shares::Share;
use crate::{Engine, EngineError, Payload, process};

/// The engine for virtual machines: the payload is a guest, which QEMU runs.
///
/// [`PayloadSpec::options`] has the [`QemuOptions`]. The fields `cpus` and `memory_mib` of the spec
/// are the virtual machine's; without them it has 1 CPU and 256 MiB. The guest has no network. Needs
/// `qemu-system-x86_64` of version 6.0 or newer in the default `PATH`.
///
/// # Processes
///
/// QEMU is the payload process. It runs with the limits of the box and dies with the shim, as a
/// command of the engine [`Process`](crate::Process) does. A control group or, without one, a data
/// limit allows it 512 MiB beyond the memory of the guest. The shim talks to QEMU through
/// sockets that have no name, so a run leaves no file behind.
///
/// # Shared directories
///
/// Each [share](QemuOptions::shares) has a virtiofsd, a [`Helper`](crate::Helper) that is confined to the
/// directory. If it ends, the guest ends with it. It has 64 MiB of the memory limit. Needs root, and
/// virtiofsd: `/usr/libexec/virtiofsd` of at least version 1.11, or that of QEMU before 8.0. The kernel
/// of the guest needs the module `virtiofs`.
///
/// # Confinement
///
/// QEMU gets no new privileges, and its own seccomp filter (`-sandbox on`) keeps it from starting
/// processes. It runs as the user of the shim.
///
/// # Output
///
/// The first serial port of the guest (`ttyS0`), and the messages of QEMU itself, go to
/// `console.log`, which is rotated as for a command.
///
/// # Readiness
///
/// A guest with an [agent](QemuOptions::agent) is ready when the agent has sent
/// [`Ready`](vmm_protocol::frames::PayloadMessage::Ready) over the virtio serial port
/// `org.vmm.agent.0`. Any other guest is ready when QEMU runs it.
///
/// # Stop
///
/// A stop asks the agent to end all processes, with SIGKILL after a quarter of the grace period, and
/// to power the guest off. In a guest without an agent, and after three eighths of the grace period in
/// any guest, it presses the power button (ACPI). If the guest still runs after three quarters, QEMU
/// gets SIGTERM, which it handles without the guest.
///
/// # Pause
///
/// QEMU stops the CPUs of the guest, on any kernel of the host. A stop lets a paused guest continue.
///
/// # How a guest ends
///
/// | what happened | [`PayloadExit`](crate::PayloadExit) |
/// |---|---|
/// | the guest reported a kernel panic | `Guest(Panicked)` |
/// | a signal killed QEMU | `Signal`, or `OutOfMemory` |
/// | QEMU failed | `Code`, with the exit code of QEMU |
/// | the guest powered off | `Guest(PoweredOff)` |
/// | the guest rebooted | `Guest(Reset)`: a guest runs once |
/// | QEMU handled SIGTERM, SIGINT or SIGHUP | `Signal(SIGTERM)` |
///
/// A guest reports a panic through the device `pvpanic`, for which its kernel needs the driver
/// `pvpanic-mmio`. Without the driver a panic is a `Reset`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qemu;

impl Engine for Qemu {
    fn name(&self) -> &str {
        QemuOptions::ENGINE
    }

    fn validate(&self, payload: &PayloadSpec) -> Result<(), EngineError> {
        QemuOptions::of(payload).map(drop)
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let options = QemuOptions::of(&spec.payload)?;
        options.check_files()?;
        let (helpers, sockets) = shares::serve(&options.shares, dir)?;
        let socket_error = || EngineError::system("create a socket to QEMU");
        let (monitor, monitor_of_qemu) = UnixStream::pair().map_err(socket_error())?;
        let (agent, agent_of_qemu) = UnixStream::pair().map_err(socket_error())?;
        let command = command_line::qemu(spec, &options, dir);
        let process = process::spawn(&command, dir, |command| {
            command
                .fd(QMP_FD, OwnedFd::from(monitor_of_qemu))
                .fd(AGENT_FD, OwnedFd::from(agent_of_qemu))
                .no_new_privs(true);
            for (fd, socket) in (FIRST_SHARE_FD..).zip(sockets) {
                command.fd(fd, socket);
            }
        })?;
        let agent = options.agent.then_some(agent);
        match Monitor::start(monitor) {
            Ok(monitor) => Ok(Box::new(QemuPayload::new(process, monitor, agent, helpers))),
            Err(error) => {
                process.kill();
                let _ = process.wait();
                Err(error)
            }
        }
    }
}
