use std::io;
use std::thread;
use std::time::Duration;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::time::{ClockId, clock_gettime};
use vmm_protocol::procfs::{self, Stat};
use vmm_protocol::{BoxDir, ControlGroup};

/// What a box uses, from [`VmmRuntime::usage`](crate::VmmRuntime::usage). A value that cannot be
/// determined is `None`.
///
/// The kernel counts for the control group of the box where it has one with the controller of the
/// value, and otherwise for each process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct BoxUsage {
    /// The CPU time divided by the wall-clock time since the start of the shim, in percent of the
    /// processors that the box may use, from 0 to 100.
    pub cpu_percent: Option<f32>,
    /// The CPU time since the start of the shim. Two values and the time between them show how much
    /// CPU the box uses now. Without a control group: of the shim, its descendants that are alive,
    /// and the children that these have reaped. It then falls when a process ends that its parent has
    /// not reaped.
    pub cpu_time: Option<Duration>,
    /// The memory of the control group, with the pages of files that are in use. Without: the
    /// resident memory of the shim and its descendants, where shared memory is counted once per
    /// process.
    pub memory_bytes: Option<u64>,
    /// The number of processes of the payload, without threads.
    pub processes: Option<u64>,
}

/// Measures the box with this directory, shim and control group. The box may use `cpus` processors;
/// those of this process if not set.
pub(crate) fn measure_usage(dir: &BoxDir, shim: u32, cpus: Option<u32>) -> io::Result<BoxUsage> {
    let Some(start_time) = Stat::of(shim)?.map(|stat| stat.start_time) else {
        return Ok(BoxUsage::default());
    };
    let group = ControlGroup::of_shim(dir.path(), shim).map_err(|error| error.source)?;
    let of_group = group.map(|group| group.usage()).unwrap_or_default();
    let (mut ticks, mut pages) = (0, 0);
    let tree = procfs::process_tree(shim)?;
    for pid in &tree {
        if let Some(stat) = Stat::of(*pid)? {
            ticks += stat.cpu_ticks;
            pages += stat.rss_pages;
        }
    }
    let ticks_per_second = clock_ticks_per_second() as f64;
    let now = seconds_since_boot();
    // The kernel does not measure less than a tick.
    let age = (now - start_time as f64 / ticks_per_second).max(1.0 / ticks_per_second);
    let cpus = cpus.map_or_else(available_processors, f64::from).max(1.0);
    let of_tree = Duration::from_secs_f64(ticks as f64 / ticks_per_second);
    let cpu_time = of_group.cpu_time.unwrap_or(of_tree);
    let share = cpu_time.as_secs_f64() / age / cpus;
    let memory = pages.saturating_mul(page_size() as u64);
    Ok(BoxUsage {
        cpu_percent: Some((100.0 * share).min(100.0) as f32),
        cpu_time: Some(cpu_time),
        memory_bytes: Some(of_group.memory_bytes.unwrap_or(memory)),
        // The shim is the first.
        processes: Some(of_group.processes.unwrap_or(tree.len() as u64 - 1)),
    })
}

fn seconds_since_boot() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Returns the current time as [`Stat::start_time`] shows it.
pub(crate) fn ticks_since_boot() -> u64 {
    (seconds_since_boot() * clock_ticks_per_second() as f64) as u64
}

fn available_processors() -> f64 {
    thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

/// Returns the number of children of this process that have exited and are not reaped.
pub(crate) fn count_zombies() -> io::Result<u64> {
    let children = procfs::children(std::process::id())?;
    Ok(children
        .into_iter()
        .filter(|pid| procfs::is_zombie(*pid))
        .count() as u64)
}
