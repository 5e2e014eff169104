use std::collections::BTreeSet;
use std::fs;

use vmm_protocol::procfs;

use crate::common::memory::Memory;
use crate::pairs::median;

/// What a process of a pod does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    /// The shim of `vmm-runtime`, the parent of QEMU.
    GuestShim,
    Qemu,
    Virtiofsd,
    RuncShim,
}

impl Role {
    /// Returns the role of a process; `None` if it does not belong to a pod, or has ended.
    fn of(pid: u32) -> Option<Self> {
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        match program.file_name()?.to_str()? {
            "containerd-shim-vmm-v1" if arguments.ends_with(b"\0serve\0") => Some(Self::Server),
            "containerd-shim-vmm-v1" => Some(Self::GuestShim),
            "containerd-shim-runc-v2" => Some(Self::RuncShim),
            "virtiofsd" => Some(Self::Virtiofsd),
            name => name.starts_with("qemu").then_some(Self::Qemu),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Server => "server, `containerd-shim-vmm-v1 serve`",
            Self::GuestShim => "shim of the guest",
            Self::Qemu => "QEMU",
            Self::Virtiofsd => "virtiofsd, each of its processes",
            Self::RuncShim => "`containerd-shim-runc-v2`",
        }
    }
}

/// Prints the medians of the processes with each role. Returns the memory of those of a pod that are the program. Children of
/// the given processes belong to a pod, too.
pub(crate) fn print_memory(pids: &[u32], pods: usize, roles: &[Role]) -> Memory {
    let trees = pids
        .iter()
        .filter_map(|pid| procfs::process_tree(*pid).ok());
    let pids: BTreeSet<u32> = trees.flatten().collect();
    let mut own = Memory::default();
    for &role in roles {
        let memory: Vec<_> = pids
            .iter()
            .filter(|pid| Role::of(**pid) == Some(role))
            .map(|pid| Memory::of(*pid))
            .collect();
        let median = |value: fn(&Memory) -> u64| -> u64 {
            let values = memory.iter().map(|memory| value(memory) as f64);
            median(values) as u64
        };
        let (pss, anonymous) = (
            median(|memory| memory.pss),
            median(|memory| memory.anonymous),
        );
        println!(
            "| {pods} | {} | {pss} KiB | {anonymous} KiB |",
            role.label()
        );
        if matches!(role, Role::Server | Role::GuestShim) {
            own.pss += pss;
            own.anonymous += anonymous;
        }
    }
    own
}
