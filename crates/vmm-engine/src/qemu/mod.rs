mod accelerator;
mod agent;
mod cleanup;
mod command_line;
mod confinement;
mod files;
mod network;
mod options;
mod payload;
mod power_off;
mod qcow2;
mod qmp;
mod queries;
mod shares;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vmm_protocol::{HostPolicy, InstanceSpec, PayloadSpec};

pub use self::accelerator::run_if_kvm_probe;
use self::agent::{Agent, GuestEnvironment, Workload};
use self::command_line::{AGENT_FD, FIRST_FILE_FD, FIRST_NETWORK_FD, FIRST_SHARE_FD, QMP_FD};
use self::confinement::Confinement;
pub use self::network::Network;
pub use self::options::{Accelerator, Disk, DiskAccess, QemuOptions};
use self::payload::QemuPayload;
use self::power_off::PowerOff;
use self::qmp::Monitor;
pub use self::shares::Share;
use crate::{Engine, EngineError, Payload, process};

/// The engine for virtual machines: the payload is a guest, which QEMU runs.
///
/// [`PayloadSpec::options`] has the [`QemuOptions`]. The fields `cpus` and `memory_mib` of the spec
/// are the virtual machine's; without them it has 1 CPU and 256 MiB. Needs
/// `qemu-system-x86_64` of version 6.0 or newer in the default `PATH`.
///
/// # Processes
///
/// QEMU is the payload process. It runs with the limits of the box and dies with the shim, as a
/// command of the engine [`Process`](crate::Process) does. A control group or, without one, a data
/// limit allows it 512 MiB beyond the memory of the guest. The shim talks to QEMU through
/// sockets that have no name, so a run leaves no file behind.
///
/// # KVM
///
/// With [`Accelerator::Auto`], QEMU uses KVM if a check succeeds: a process executes one instruction in a virtual
/// machine of KVM, and a QEMU boots the kernel of the guest without a root file system, within 5 s and 10 s. The
/// result counts until the host boots again, or QEMU or the kernel is replaced; it is in
/// [`InstanceSpec::cache_dir`], whose files `kvm-*` can be deleted. Of guests that start at once, one checks. If the
/// check fails, the shim writes the reason to `shim.stderr`, and QEMU translates the instructions, of a CPU without the
/// features `erms` and `la57`, which make translated code slower. With [`Accelerator::Kvm`], the start fails then
/// with [`EngineError::KvmUnusable`]. The check is a part of the start: where guests hang with KVM, a start timeout
/// below 20 s needs [`Accelerator::Tcg`].
///
/// # Shared directories
///
/// Each [share](QemuOptions::shares) has a virtiofsd, a [`Helper`](crate::Helper) that is confined to the
/// directory. If it ends, the guest ends with it. It has 64 MiB of the memory limit. Needs root, and
/// virtiofsd: `/usr/libexec/virtiofsd` of at least version 1.11, or that of QEMU before 8.0. The kernel
/// of the guest needs the module `virtiofs`.
///
/// # Network
///
/// A guest with the option [`network`](QemuOptions::network) takes over the interfaces of a network namespace;
/// any other guest has only a loopback interface. The shim creates a tap device in the namespace for each
/// interface, and a filter of traffic control redirects the frames of both to each other. QEMU gets the
/// descriptors of the devices, and stays in a namespace of its own. The agent configures the interfaces. Needs
/// a shim with the privilege `CAP_NET_ADMIN`, a kernel of the host with `cls_u32`, `act_mirred` and `tun`, and
/// one of the guest with the module `virtio_net`.
///
/// # Confinement
///
/// A guest that has taken over QEMU is kept from the host by these [rules](vmm_protocol::ConfinementRule). QEMU
/// also gets no new privileges.
///
/// * `seccomp`: the filter of QEMU (`-sandbox on`) keeps it from starting processes.
/// * `landlock` permits it to read the kernel and the initrd, and to read and execute the files in `/usr`. The
///   shim opens the disks and overlays for it. It cannot signal or trace other processes, or use TCP. Needs
///   Linux 6.12 for all of this, and Linux 5.13 for the files.
/// * `network_namespace`: one without interfaces keeps it and the servers of shared directories from the
///   network. Needs a shim with the privilege `CAP_SYS_ADMIN`.
/// * `user`: it has the user and the group [`InstanceSpec::uid`], no privileges, and no other group but that of
///   `/dev/kvm` for KVM. Every user must be able to read the kernel and the initrd, whose directories can be
///   private. The servers of shared directories keep the user of the shim.
///
/// If the operator has disabled a rule, or the host does not support it, the shim writes so to `shim.stderr`,
/// reports it as an [`UnappliedRule`](vmm_protocol::UnappliedRule), and starts the guest without it.
///
/// # The command of a box
///
/// A guest with an [agent](QemuOptions::agent) runs the `command` of the spec, its *workload*, with
/// its `env`, `working_dir` and `stdin`. Executions beside it have the same environment. The guest
/// powers off when the workload has ended, and processes that the workload has left are killed. A
/// guest without a command runs until it is stopped, or powers off itself. Command and environment
/// together have at most 64 KiB.
///
/// # Output
///
/// The output of the workload, the first serial port of the guest (`ttyS0`), and the messages of QEMU
/// itself, go to `console.log`, which is rotated as for a command. With a workload, the kernel gets
/// the parameter `quiet`, so that it prints errors only.
///
/// # Readiness
///
/// A guest with an agent is ready when the agent has sent
/// [`Ready`](vmm_protocol::frames::PayloadMessage::Ready) over the virtio serial port
/// `org.vmm.agent.0`, and has started the workload. Any other guest is ready when QEMU runs it.
///
/// # Stop
///
/// A stop takes at most the grace period. It asks the agent to end all processes: with SIGTERM, and
/// with SIGKILL after a half of the period. The agent then powers the guest off. In a guest without
/// an agent at once, and otherwise after five eighths, the power button is pressed (ACPI). If QEMU
/// still runs after three quarters, it gets SIGTERM, which it handles without the guest, and at the
/// end of the period SIGKILL.
///
/// A guest whose workload has ended by itself has 10 minutes to write its data to its disks and power off, however
/// short the grace period is. A stop that is requested meanwhile ends it within the grace period.
///
/// # Pause
///
/// QEMU stops the CPUs of the guest, on any kernel of the host. It reports each pause, also one that was
/// not requested. A stop lets a paused guest continue.
///
/// # Requests
///
/// `VmmRuntime::call` takes some commands of the QEMU Machine Protocol that change nothing, and returns what
/// QEMU returns: `{"execute": QUERY}` with `query-status`, `query-version`, `query-kvm`, `query-cpus-fast`,
/// `query-memory-size-summary`, `query-block` or `query-blockstats`.
///
/// # How a guest ends
///
/// The first row that applies counts.
///
/// | what happened | [`PayloadExit`](crate::PayloadExit) |
/// |---|---|
/// | the workload failed | `Code`, `Signal` or `OutOfMemory`, as the agent reported |
/// | the guest reported a kernel panic | `Guest(Panicked)` |
/// | a signal killed QEMU | `Signal`, or `OutOfMemory` |
/// | QEMU failed | `Code`, with the exit code of QEMU |
/// | the guest powered off | `Guest(PoweredOff)`, or `Code(0)` after a workload that succeeded |
/// | the guest rebooted | `Guest(Reset)`: a guest runs once |
/// | QEMU handled SIGTERM, SIGINT or SIGHUP | `Signal(SIGTERM)` |
/// | QEMU ended without a reason | `Unknown` |
///
/// A guest reports a panic through the device `pvpanic`, for which its kernel needs the driver
/// `pvpanic-mmio`. Without the driver a panic is a `Reset`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Qemu;

impl Engine for Qemu {
    fn name(&self) -> &str {
        QemuOptions::ENGINE
    }

    fn validate(&self, payload: &PayloadSpec, policy: &HostPolicy) -> Result<(), EngineError> {
        QemuOptions::of(payload)?.check_policy(policy)
    }

    fn start(&self, spec: &InstanceSpec, dir: &Path) -> Result<Box<dyn Payload>, EngineError> {
        let mut options = QemuOptions::of(&spec.payload)?;
        options.accelerator = accelerator::choose(spec, &options)?;
        let confinement = Confinement::prepare(spec, &options)?;
        confinement.report();
        let files = files::open(&options, dir, FIRST_FILE_FD, confinement.uid())?;
        // First, because it is dropped last: after the tap devices.
        let (attachment, taps, network) = network::attach(options.network.as_ref())?;
        let (helpers, sockets) = shares::serve(&options.shares, dir, &confinement)?;
        let socket_error = || EngineError::system("create a socket to QEMU");
        let (monitor, monitor_of_qemu) = UnixStream::pair().map_err(socket_error())?;
        let (agent, agent_of_qemu) = UnixStream::pair().map_err(socket_error())?;
        let command = command_line::qemu(spec, &options, &files, &taps.macs);
        let mut workload = None;
        let mut unapplied_rules = Vec::new();
        let spawned = Instant::now();
        let process = process::spawn(&command, dir, |command, console| {
            command
                .fd(QMP_FD, OwnedFd::from(monitor_of_qemu))
                .fd(AGENT_FD, OwnedFd::from(agent_of_qemu));
            let taps = (FIRST_NETWORK_FD..).zip(taps.fds);
            let sockets = (FIRST_SHARE_FD..).zip(sockets);
            for (fd, file) in taps.chain(sockets).chain(files.fds) {
                command.fd(fd, file);
            }
            unapplied_rules = confinement.apply(command);
            workload = Workload::new(&spec.payload, console);
        })?;
        let process = Arc::new(process);
        let connect = || -> Result<_, EngineError> {
            let monitor = Monitor::start(monitor)?;
            let power_off = PowerOff::new(Arc::clone(&process), Arc::clone(&monitor));
            let agent = if options.agent {
                let environment = GuestEnvironment::new(spec, options.user, network);
                let on_exit = {
                    let power_off = Arc::clone(&power_off);
                    move || power_off.begin_at_natural_end()
                };
                Some(Agent::start(
                    agent,
                    spawned,
                    environment,
                    workload,
                    on_exit,
                )?)
            } else {
                None
            };
            let process = Arc::clone(&process);
            Ok(QemuPayload::new(
                process,
                monitor,
                agent,
                power_off,
                helpers,
                unapplied_rules,
            ))
        };
        match connect() {
            Ok(payload) => Ok(Box::new(payload.in_network(attachment))),
            Err(error) => {
                process.kill();
                let _ = process.wait();
                Err(error)
            }
        }
    }

    fn cleanup(&self, payload: &PayloadSpec, dir: &Path) -> Result<(), EngineError> {
        cleanup::remove_files(dir)?;
        match Network::namespace_of(payload) {
            Some(namespace) => network::clean_up(namespace),
            None => Ok(()),
        }
    }
}
