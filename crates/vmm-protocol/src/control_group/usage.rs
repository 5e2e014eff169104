use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::ControlGroup;

/// What the processes of [`ControlGroup`]s use. A value without a controller is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupUsage {
    /// The CPU time, also of processes that have ended.
    pub cpu_time: Option<Duration>,
    /// The memory, with the pages of files that are in use.
    pub memory_bytes: Option<u64>,
    /// The number of processes, without threads.
    pub processes: Option<u64>,
}

impl ControlGroup {
    /// Reads what the processes in the groups use.
    pub fn usage(&self) -> GroupUsage {
        let dirs = || self.dirs.iter();
        let processes = self.pids().ok().map(|pids| pids.len() as u64);
        GroupUsage {
            cpu_time: dirs().find_map(|dir| cpu_time(dir)),
            memory_bytes: dirs().find_map(|dir| memory_bytes(dir)),
            processes: processes.filter(|_| dirs().any(|dir| dir.exists())),
        }
    }
}

fn cpu_time(dir: &Path) -> Option<Duration> {
    let v2 = || field(dir, "cpu.stat", "usage_usec").map(Duration::from_micros);
    v2().or_else(|| number(dir, "cpuacct.usage").map(Duration::from_nanos))
}

/// Returns the memory without the pages of files that are not in use, which the kernel frees first,
/// as docker does.
fn memory_bytes(dir: &Path) -> Option<u64> {
    let used = |file, inactive| {
        let inactive: u64 = field(dir, "memory.stat", inactive).unwrap_or(0);
        number::<u64>(dir, file).map(|used| used.saturating_sub(inactive))
    };
    let v2 = used("memory.current", "inactive_file");
    v2.or_else(|| used("memory.usage_in_bytes", "total_inactive_file"))
}

fn number<T: FromStr>(dir: &Path, file: &str) -> Option<T> {
    fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// Returns the value of a line `NAME VALUE`.
fn field<T: FromStr>(dir: &Path, file: &str, name: &str) -> Option<T> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(' '));
    fields.find(|(it, _)| *it == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(files: &[(&str, &str)]) -> GroupUsage {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files.iter().chain(&[("cgroup.procs", "7\n8\n")]) {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let dirs = vec![dir.path().to_owned()];
        ControlGroup { dirs }.usage()
    }

    #[test]
    fn both_versions_of_control_groups_are_read() {
        let expected = GroupUsage {
            cpu_time: Some(Duration::from_millis(1500)),
            memory_bytes: Some(700),
            processes: Some(2),
        };
        let v2 = usage(&[
            ("cpu.stat", "usage_usec 1500000\nuser_usec 1\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 5\ninactive_file 300\n"),
        ]);
        assert_eq!(v2, expected);
        let v1 = usage(&[
            ("cpuacct.usage", "1500000000\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.stat", "inactive_file 9\ntotal_inactive_file 300\n"),
        ]);
        assert_eq!(v1, expected);
    }

    #[test]
    fn a_group_without_a_controller_has_no_value() {
        let usage = usage(&[]);
        assert_eq!((usage.cpu_time, usage.memory_bytes), (None, None));
        let dirs = vec!["/nonexistent".into()];
        assert_eq!(ControlGroup { dirs }.usage(), GroupUsage::default());
    }
}
