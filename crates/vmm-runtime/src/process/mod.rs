//! Processes in general: to which box they belong, what they use, monitoring, and killing orphans.

mod adopters;
mod cleanup_target;
pub(crate) mod membership;
mod monitor;
mod orphans;
mod process_wide_reaper;
mod reap_wait;
mod search;
mod usage;
mod zombies;

pub(crate) use adopters::adopt_orphans_of;
pub(crate) use cleanup_target::CleanupTarget;
pub use monitor::{ProcessExit, ProcessMonitor};
pub(crate) use orphans::OrphanCleaner;
pub(crate) use process_wide_reaper::{keep_reaping, process_wide_reaper};
pub(crate) use reap_wait::wait_until_reaped;
pub use usage::BoxUsage;
pub(crate) use usage::{count_zombies, measure_usage, ticks_since_boot};
pub(crate) use zombies::ZombieCounter;

use std::time::Duration;

/// How long a process may survive SIGKILL before an operation reports it as stuck.
pub(crate) const SIGKILL_TIMEOUT: Duration = Duration::from_secs(10);
