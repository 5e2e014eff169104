/// What a reaper has done so far, and whether it still does it.
///
/// Numbers of one call may be a few events apart from each other: they are read without a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReaperStats {
    /// Shims registered at this moment, zombies left to their owner included.
    pub registered: u64,
    /// Shims that the reaper collected. Only rises.
    pub reaped_total: u64,
    /// Shims that somebody else collected, or that were not our children. Only rises.
    pub vanished_total: u64,
    /// Orphans that were reaped in the process groups of ended shims. Only rises.
    pub orphans_reaped_total: u64,
    /// Interval sweeps since the start. Rises every interval, also when nothing exits: when it
    /// does not, the reaper is not running.
    pub sweeps_completed: u64,
    /// When the latest interval sweep ended, in milliseconds since the Unix epoch.
    pub last_sweep_at_ms: Option<i64>,
    /// False once the reaper has shut down, or while it has lost its tokio runtime and the thread
    /// that is to replace it cannot be started.
    pub worker_alive: bool,
    /// Times the worker was replaced: after a panic, or by a dedicated thread after the loss of its
    /// tokio runtime. Only rises.
    pub respawns_total: u64,
    /// Registered shims that only the interval sweep looks after, for want of a pidfd.
    pub without_pidfd: u64,
}
