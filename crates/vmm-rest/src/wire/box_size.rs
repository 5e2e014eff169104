//! The sizes that a box can have.

use std::ops::RangeInclusive;

/// The range of virtual processors of a box.
pub(crate) const CPUS: RangeInclusive<u32> = 1..=32;
/// The range of memory of a box, in MiB.
pub(crate) const MEMORY_MIB: RangeInclusive<u32> = 128..=1 << 20;

/// The range of the process and thread limit of a box; the maximum is that of the kernel's pids.
pub(crate) const PIDS: RangeInclusive<u32> = 1..=1 << 22;

/// The virtual processors of a box whose request and image set none.
pub(crate) const DEFAULT_CPUS: u32 = 1;
/// The memory, in MiB, of a box whose request and image set none.
pub(crate) const DEFAULT_MEMORY_MIB: u32 = 512;
