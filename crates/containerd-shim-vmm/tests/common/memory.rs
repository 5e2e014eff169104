//! The memory of processes. Also compiled into other tests and the benchmark.

use std::fs;

/// The memory of a process, as in `/proc/<pid>/smaps_rollup`, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) pss: u64,
    pub(crate) anonymous: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let value = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Self {
            pss: value("Pss:"),
            anonymous: value("Pss_Anon:"),
        }
    }
}
