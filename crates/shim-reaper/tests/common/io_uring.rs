//! Reapers on a dedicated thread with io_uring.

use std::fs;
use std::time::Duration;

use futures::executor::block_on;
use shim_reaper::{ReaperBuilder, ShimHandle, ShimReaper};

use super::{eventually_blocking, exits_with, skip, sleeper};

/// Starts a reaper that sweeps once only, and waits until it has. Returns `None` without io_uring.
pub fn start(builder: ReaperBuilder) -> Option<ShimReaper> {
    let reaper = builder
        .io_uring(true)
        .sweep_interval(Duration::from_secs(3600))
        .start_dedicated()
        .unwrap();
    eventually_blocking("the reaper sweeps", || reaper.stats().sweeps_completed > 0);
    if rings() > 0 {
        return Some(reaper);
    }
    skip("io_uring is unavailable");
    None
}

/// Returns the number of rings of this process.
pub fn rings() -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|link| link.as_os_str() == "anon_inode:[io_uring]")
        .count()
}

/// Spawns shims, and waits until the kernel has the requests to reap them.
pub fn spawn_sleepers(reaper: &ShimReaper, count: usize) -> Vec<ShimHandle> {
    let spawn = |_| reaper.spawn(sleeper()).unwrap();
    let shims = (0..count).map(spawn).collect();
    // The event of an exit makes the thread request it, and then wait in the kernel.
    for _ in 0..2 {
        block_on(reaper.spawn(exits_with(0)).unwrap()).unwrap();
    }
    shims
}
