use std::ops::RangeInclusive;

/// How many virtual processors a box may have.
pub(crate) const CPUS: RangeInclusive<u32> = 1..=32;
/// How much memory, in MiB.
pub(crate) const MEMORY_MIB: RangeInclusive<u32> = 128..=1 << 20;

/// How many processes and threads: as many as a kernel can have.
pub(crate) const PIDS: RangeInclusive<u32> = 1..=1 << 22;

pub(crate) const DEFAULT_CPUS: u32 = 1;
pub(crate) const DEFAULT_MEMORY_MIB: u32 = 512;
