//! What `/proc` tells of processes, `proc(5)`. Blocks; may be out of date when it returns.

use std::fs;
use std::io;

/// The line of a process in `/proc/<pid>/stat`, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    /// Of its own, and of the children that it has collected, in ticks.
    pub(crate) cpu_ticks: u64,
    /// After boot, in ticks.
    pub(crate) started: u64,
    /// Resident memory, in pages.
    pub(crate) pages: u64,
}

pub(crate) fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(line: &str) -> Option<Stat> {
    // The name before it may contain anything.
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    // `proc(5)` counts from 1, and two have been cut off.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        cpu_ticks: (14..=17).map(number).sum::<Option<u64>>()?,
        started: number(22)?,
        pages: number(24)?,
    })
}

/// The children of a process, zombies among them. An error where the kernel does not tell.
pub(crate) fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(thread?.path().join("children")) {
            Ok(list) => children.extend(
                list.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            ),
            // The thread has ended, and its children are another's.
            Err(_) if children_are_told() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

fn children_are_told() -> bool {
    fs::exists("/proc/thread-self/children").unwrap_or(false)
}

/// Seconds since boot.
pub(crate) fn uptime() -> Option<f64> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// A family that grows faster than it is looked through comes to an end here.
const LARGEST_FAMILY: usize = 10_000;

/// The process and all that descends from it.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut seen = 0;
    while let Some(parent) = family.get(seen)
        && family.len() < LARGEST_FAMILY
    {
        // One that is gone has none.
        let children = children(*parent).unwrap_or_default();
        family.extend(children);
        seen += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_confuses_nobody() {
        let line = "42 (a) b) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1900 20 21 22";
        let wanted = Stat {
            state: 'Z',
            cpu_ticks: 11 + 12 + 13 + 14,
            started: 1900,
            pages: 21,
        };
        assert_eq!(parse(line), Some(wanted));
    }

    #[test]
    fn what_ends_early_or_is_gone_is_nothing() {
        assert_eq!(parse("42 (a) S 1 2"), None);
        assert_eq!(stat(u32::MAX), None);
    }

    #[test]
    fn this_process_is_the_first_of_its_family() {
        let this = std::process::id();
        assert_eq!(family(this)[0], this);
        assert!(stat(this).unwrap().pages > 0);
    }
}
