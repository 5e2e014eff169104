use rustix::param::{clock_ticks_per_second, page_size};

use super::procfs;
use crate::wire::BoxMetricsResponse;

/// Returns the CPU and memory usage of a shim and its descendants; the box may use `cpus` processors.
///
/// Blocks while it reads `/proc`.
pub(crate) fn shim_usage(pid: u32, cpus: u32) -> BoxMetricsResponse {
    let mut usage = BoxMetricsResponse::default();
    let Some(shim) = procfs::stat(pid) else {
        return usage;
    };
    let tree = procfs::process_tree(pid);
    let stats: Vec<_> = tree.into_iter().filter_map(procfs::stat).collect();
    let ticks_per_second = clock_ticks_per_second();
    let pages: u64 = stats.iter().map(|stat| stat.rss_pages).sum();
    usage.memory_bytes = Some(pages.saturating_mul(page_size() as u64));
    let ticks: u64 = stats.iter().map(|stat| stat.cpu_ticks).sum();
    usage.cpu_percent = procfs::uptime_seconds().map(|uptime| {
        let age = uptime - ticks_to_seconds(shim.start_ticks, ticks_per_second);
        // The kernel does not measure less than a tick.
        let age = age.max(1.0 / ticks_to_seconds(ticks_per_second, 1));
        let share = ticks_to_seconds(ticks, ticks_per_second) / age / f64::from(cpus.max(1));
        (100.0 * share).min(100.0) as f32
    });
    usage
}

fn ticks_to_seconds(ticks: u64, ticks_per_second: u64) -> f64 {
    ticks as f64 / ticks_per_second as f64
}
