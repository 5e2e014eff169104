use std::fs;
use std::io;

use vmm_protocol::frames::GuestStats;
use vmm_protocol::procfs;

/// Reads from `/proc` what the guest uses.
pub(crate) fn read() -> io::Result<GuestStats> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let mut stats = GuestStats::default();
    stats.memory_total_bytes = memory_bytes(&memory, "MemTotal:");
    stats.memory_available_bytes = memory_bytes(&memory, "MemAvailable:");
    stats.load_average = first_number(&load).unwrap_or_default();
    stats.processes = procfs::process_tree(std::process::id())?.len() as u64;
    Ok(stats)
}

/// Returns a field of `/proc/meminfo`, which has KiB.
fn memory_bytes(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let kib: Option<u64> = value.and_then(first_number);
    kib.unwrap_or_default() << 10
}

fn first_number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stats_are_those_of_the_machine() {
        let stats = read().unwrap();
        assert!(stats.memory_available_bytes > 1 << 20, "{stats:?}");
        assert!(stats.memory_total_bytes > stats.memory_available_bytes);
        assert!(
            stats.load_average >= 0.0 && stats.processes >= 1,
            "{stats:?}"
        );
    }
}
