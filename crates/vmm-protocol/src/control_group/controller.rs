/// A version of the kernel's interface. A host can use both, with some controllers in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One file of a control group, and the value to write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: &'static str,
    pub(super) value: u64,
    /// Whether the kernel may lack the file, depending on its configuration.
    pub(super) is_optional: bool,
    /// Whether the kernel rejects a value above that of the parent group.
    pub(super) is_bounded_by_parent: bool,
}

/// A controller of `cgroups(7)`, which limits one kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// CPU time, in CPUs.
    Cpu,
    /// Memory without swap, in bytes.
    Memory,
    /// The number of processes and threads.
    Pids,
}

/// The period of a CPU quota: the default of the kernel.
const CPU_PERIOD_MICROS: u64 = 100_000;

impl Controller {
    pub(super) const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// Returns the settings that limit a group to `amount`, in the unit of the controller.
    ///
    /// Swap is limited, too: a payload could otherwise exceed its memory limit by using swap.
    pub(super) fn settings(self, version: Version, amount: u64) -> Vec<Setting> {
        let required = |file, value| Setting {
            file,
            value,
            is_optional: false,
            is_bounded_by_parent: false,
        };
        let optional = |file, value| Setting {
            is_optional: true,
            ..required(file, value)
        };
        match (self, version) {
            // A write without a period leaves the period unchanged.
            (Self::Cpu, Version::V2) => vec![required("cpu.max", amount * CPU_PERIOD_MICROS)],
            (Self::Cpu, Version::V1) => vec![
                required("cpu.cfs_period_us", CPU_PERIOD_MICROS),
                Setting {
                    is_bounded_by_parent: true,
                    ..required("cpu.cfs_quota_us", amount * CPU_PERIOD_MICROS)
                },
            ],
            (Self::Memory, Version::V2) => vec![
                required("memory.max", amount),
                optional("memory.swap.max", 0),
            ],
            (Self::Memory, Version::V1) => vec![
                required("memory.limit_in_bytes", amount),
                optional("memory.memsw.limit_in_bytes", amount),
            ],
            (Self::Pids, Version::V1 | Version::V2) => vec![required("pids.max", amount)],
        }
    }

    /// Returns the file in which a line `oom_kill <n>` counts the processes that the kernel has
    /// killed for lack of memory.
    pub(super) fn oom_kills_file(version: Version) -> &'static str {
        match version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        }
    }
}

/// Returns the settings that limit how many groups a payload can create within its own, and how
/// deep it can nest them. The limits suffice for a service manager or containers in a box, and so
/// few groups can be removed at once.
///
/// Version 1 has no such limits, nor has Linux before 4.14. A payload that runs as root and sees
/// the hierarchy can raise them.
pub(super) fn nesting_settings(version: Version) -> Vec<Setting> {
    let optional = |file, value| Setting {
        file,
        value,
        is_optional: true,
        is_bounded_by_parent: false,
    };
    match version {
        Version::V1 => Vec::new(),
        Version::V2 => vec![
            optional("cgroup.max.descendants", 4096),
            optional("cgroup.max.depth", 64),
        ],
    }
}
