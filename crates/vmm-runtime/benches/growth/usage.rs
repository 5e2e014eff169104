//! The CPU time and the memory of processes.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .expect("a clock")
        .into()
}

/// Returns the CPU time of this process and of the processes that it has reaped.
pub fn cpu_time_with_children() -> Duration {
    let used = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
        let usage = getrusage(who).expect("usage");
        let times = [usage.user_time(), usage.system_time()];
        times.map(|time| Duration::from_micros(time.num_microseconds().unsigned_abs()))
    });
    used.into_iter().flatten().sum()
}

pub fn resident_kib(pid: u32) -> f64 {
    field(&format!("/proc/{pid}/status"), "VmRSS:")
}

pub fn field(path: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(f64::NAN)
}
