//! Processes in general: reading `/proc`, monitoring, and killing orphans.

mod monitor;
mod orphans;
mod process_wide_reaper;
pub(crate) mod procfs;
mod search;

pub use monitor::{ProcessExit, ProcessMonitor};
pub(crate) use orphans::{CleanupTarget, OrphanCleaner};
pub(crate) use process_wide_reaper::{keep_reaping, process_wide_reaper};

use std::time::Duration;

/// How long a process may survive SIGKILL before an operation reports it as stuck.
pub(crate) const SIGKILL_TIMEOUT: Duration = Duration::from_secs(10);
