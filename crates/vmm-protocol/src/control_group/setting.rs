use super::hierarchy::Version;

/// A limit that a controller keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: &'static str,
    pub(super) value: u64,
    /// Whether the kernel may be built or booted without it.
    pub(super) is_optional: bool,
    /// Whether the kernel refuses more than the group around it has.
    pub(super) is_bounded_above: bool,
}

/// What bounds one kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Memory, without swap.
    Memory,
    /// Processes and threads.
    Pids,
}

/// Microseconds; what the kernel takes where nothing else is said.
const PERIOD: u64 = 100_000;

impl Controller {
    pub(super) const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// `amount` in processors, in bytes, or in processes. Swap is not memory: with some, a payload would take
    /// more than that.
    pub(super) fn settings(self, version: Version, amount: u64) -> Vec<Setting> {
        let needed = |file, value| Setting {
            file,
            value,
            is_optional: false,
            is_bounded_above: false,
        };
        let optional = |file, value| Setting {
            file,
            value,
            is_optional: true,
            is_bounded_above: false,
        };
        match (self, version) {
            // The period is optional to write, and stays as it is.
            (Self::Cpu, Version::V2) => vec![needed("cpu.max", amount * PERIOD)],
            (Self::Cpu, Version::V1) => vec![
                needed("cpu.cfs_period_us", PERIOD),
                Setting {
                    is_bounded_above: true,
                    ..needed("cpu.cfs_quota_us", amount * PERIOD)
                },
            ],
            (Self::Memory, Version::V2) => {
                vec![needed("memory.max", amount), optional("memory.swap.max", 0)]
            }
            (Self::Memory, Version::V1) => vec![
                needed("memory.limit_in_bytes", amount),
                optional("memory.memsw.limit_in_bytes", amount),
            ],
            (Self::Pids, Version::V1 | Version::V2) => vec![needed("pids.max", amount)],
        }
    }

    /// Where the kernel counts in a line `oom_kill <n>` what it has killed for want of memory.
    pub(super) fn kills_file(version: Version) -> &'static str {
        match version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        }
    }
}
