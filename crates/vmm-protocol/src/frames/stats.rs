use serde::{Deserialize, Serialize};

/// What a guest uses, as its own kernel counts it. A guest can report anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GuestStats {
    /// The memory of the guest, in bytes, without what its kernel reserves.
    pub memory_total_bytes: u64,
    /// How much memory programs of the guest can still use, in bytes.
    pub memory_available_bytes: u64,
    /// The load average of the last minute, `proc_loadavg(5)`.
    pub load_average: f64,
    /// The number of processes, without threads and kernel threads.
    pub processes: u64,
}
