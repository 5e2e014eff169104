use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::resource::{Resource as NixResource, getrlimit};
use nix::unistd::Pid;
use pidfd_spawn::{Command, Resource};

use vmm_protocol::{ControlGroup, Controller, InstanceSpec, PayloadSpec, with_causes};

use crate::EngineError;

/// The limits on the CPUs, memory and processes of a payload.
///
/// The shim [prepares](Self::prepare) them, and [applies](Self::apply) them to the command that starts
/// the payload.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// The directories of the control groups.
    groups: Vec<PathBuf>,
    /// The number of CPUs for the affinity, if there is no control group for CPU time.
    cpus: Option<u32>,
    /// The limit on the data segment of each process in bytes, if there is no control group for
    /// memory.
    data_bytes: Option<u64>,
}

/// More CPUs than any kernel supports, and a valid value for a CPU quota.
const MAX_CPUS: u32 = 8192;

/// The maximum number of processes on any kernel, which rejects a higher limit.
const MAX_PIDS: u32 = 1 << 22;

impl Limits {
    /// Creates the control groups for the limits in the spec, and selects a substitute for each
    /// limit without a control group.
    pub(super) fn prepare(spec: &InstanceSpec, dir: &Path) -> Result<Self, EngineError> {
        let PayloadSpec {
            cpus,
            memory_mib,
            pids,
            ..
        } = spec.payload;
        let cpus = cpus.map(|cpus| cpus.min(MAX_CPUS));
        let memory_bytes = memory_mib.map(|mib| u64::from(mib) << 20);
        let amounts: Vec<_> = [
            (Controller::Cpu, cpus.map(u64::from)),
            (Controller::Memory, memory_bytes),
            (Controller::Pids, pids.map(|pids| pids.min(MAX_PIDS).into())),
        ]
        .into_iter()
        .filter_map(|(controller, amount)| Some((controller, amount?)))
        .collect();
        if amounts.is_empty() {
            return Ok(Self::default());
        }
        let (group, failures) = ControlGroup::create(dir, &amounts)?;
        let mut limits = Self {
            groups: group.into_dirs(),
            ..Self::default()
        };
        for (controller, error) in failures {
            let substitute = match controller {
                Controller::Cpu => {
                    limits.cpus = cpus;
                    "a CPU affinity"
                }
                Controller::Memory => {
                    limits.data_bytes = memory_bytes;
                    "a data limit for each process"
                }
                // RLIMIT_NPROC counts all processes of the user, and does not apply to root.
                Controller::Pids => "no limit on processes",
            };
            let _ = writeln!(
                io::stderr(),
                "vmm-shim: the payload gets {substitute} instead of a control group: {}",
                with_causes(&error)
            );
        }
        Ok(limits)
    }

    /// Makes the command start its child with the limits.
    pub(super) fn apply(&self, command: &mut Command) -> io::Result<()> {
        for group in &self.groups {
            command.cgroup(File::open(group)?);
        }
        if let Some(count) = self.cpus {
            command.affinity(affinity(count as usize)?);
        }
        if let Some(bytes) = self.data_bytes {
            // Only root may raise the hard limit.
            let (_, hard) = getrlimit(NixResource::RLIMIT_DATA)?;
            let bytes = bytes.min(hard);
            command.rlimit(Resource::Data, bytes, bytes);
        }
        Ok(())
    }
}

/// Returns this number of the CPUs on which this process may run. The first one depends on its pid,
/// which spreads payloads over the CPUs.
fn affinity(count: usize) -> nix::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let allowed: Vec<_> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu) == Ok(true))
        .collect();
    let first = process::id() as usize % allowed.len().max(1);
    let count = count.min(allowed.len());
    Ok(allowed
        .into_iter()
        .cycle()
        .skip(first)
        .take(count)
        .collect())
}
