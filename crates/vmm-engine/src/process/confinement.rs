use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use vmm_protocol::{ControlGroup, Controller, InstanceSpec, PROCS_FILE, PayloadSpec};

use crate::EngineError;

/// What keeps a payload to the processors, the memory and the processes of its spec. The shim prepares it; the
/// launcher, which becomes the payload, applies it to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Confinement {
    /// To enter.
    groups: Vec<PathBuf>,
    /// How many processors to stay on, where no group can be made.
    processors: Option<u32>,
    /// How many bytes of data each process may have, where no group can be made.
    data: Option<u64>,
}

/// More than any kernel is built for, and within what it takes as a quota.
const MAX_PROCESSORS: u32 = 8192;

/// As many as any kernel can have; it refuses a larger limit.
const MAX_PIDS: u32 = 1 << 22;

impl Confinement {
    pub(super) fn prepare(spec: &InstanceSpec, dir: &Path) -> Result<Self, EngineError> {
        let PayloadSpec {
            cpus,
            memory_mib,
            pids,
            ..
        } = spec.payload;
        if [cpus, memory_mib, pids].contains(&Some(0)) {
            let message = "a payload needs at least 1 processor, 1 MiB of memory and 1 process";
            return Err(EngineError::Spec(message.to_owned()));
        }
        let processors = cpus.map(|cpus| cpus.min(MAX_PROCESSORS));
        let bytes = memory_mib.map(|mib| u64::from(mib) << 20);
        let limits: Vec<_> = [
            (Controller::Cpu, processors.map(u64::from)),
            (Controller::Memory, bytes),
            (Controller::Pids, pids.map(|pids| pids.min(MAX_PIDS).into())),
        ]
        .into_iter()
        .filter_map(|(controller, amount)| Some((controller, amount?)))
        .collect();
        if limits.is_empty() {
            return Ok(Self::default());
        }
        let (group, refused) = ControlGroup::create(dir, &limits)?;
        let mut confinement = Self {
            groups: group.into_dirs(),
            ..Self::default()
        };
        for (controller, error) in refused {
            let instead = match controller {
                Controller::Cpu => {
                    confinement.processors = processors;
                    "an affinity"
                }
                Controller::Memory => {
                    confinement.data = bytes;
                    "a limit of data for each process"
                }
                // RLIMIT_NPROC counts all processes of the user, and does not bind root.
                Controller::Pids => "no limit of processes",
            };
            let _ = writeln!(
                io::stderr(),
                "vmm-shim: the payload gets {instead} instead of a control group: {error}"
            );
        }
        Ok(confinement)
    }

    /// To this process, and what it will be.
    pub(super) fn apply(&self) -> io::Result<()> {
        for group in &self.groups {
            fs::write(group.join(PROCS_FILE), "0")?;
        }
        if let Some(count) = self.processors {
            stay_on(count as usize)?;
        }
        if let Some(bytes) = self.data {
            // Only the superuser may raise it.
            let (_, hard) = getrlimit(Resource::RLIMIT_DATA)?;
            let bytes = bytes.min(hard);
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)?;
        }
        Ok(())
    }
}

/// Beginning with another processor in each process, so that not all payloads crowd the first.
fn stay_on(count: usize) -> nix::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let allowed: Vec<_> = (0..CpuSet::count())
        .filter(|processor| allowed.is_set(*processor) == Ok(true))
        .collect();
    let first = process::id() as usize % allowed.len().max(1);
    let mut chosen = CpuSet::new();
    for processor in allowed
        .iter()
        .cycle()
        .skip(first)
        .take(count.min(allowed.len()))
    {
        chosen.set(*processor)?;
    }
    sched_setaffinity(this, &chosen)
}
