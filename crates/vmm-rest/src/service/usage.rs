use rustix::param::{clock_ticks_per_second, page_size};

use super::procfs;
use crate::wire::BoxMetricsResponse;

/// What a shim and all that descends from it use, of so many processors. Blocks.
pub(crate) fn of_shim(pid: u32, cpus: u32) -> BoxMetricsResponse {
    let mut usage = BoxMetricsResponse::default();
    let Some(shim) = procfs::stat(pid) else {
        return usage;
    };
    let family = procfs::family(pid);
    let stats: Vec<_> = family.into_iter().filter_map(procfs::stat).collect();
    let per_second = clock_ticks_per_second();
    let pages: u64 = stats.iter().map(|stat| stat.pages).sum();
    usage.memory_bytes = Some(pages.saturating_mul(page_size() as u64));
    let ticks: u64 = stats.iter().map(|stat| stat.cpu_ticks).sum();
    usage.cpu_percent = procfs::uptime().map(|uptime| {
        let age = uptime - ticks_to_seconds(shim.started, per_second);
        // A tick is the least that can be told.
        let age = age.max(1.0 / ticks_to_seconds(per_second, 1));
        let share = ticks_to_seconds(ticks, per_second) / age / f64::from(cpus.max(1));
        (100.0 * share).min(100.0) as f32
    });
    usage
}

fn ticks_to_seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second as f64
}
