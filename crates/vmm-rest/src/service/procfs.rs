//! Reads processes from `/proc`, proc(5). All functions block, and their results can be outdated when
//! they return.

use std::fs;
use std::io;

/// Fields of `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    /// The CPU time of the process and of the children that it has reaped, in clock ticks.
    pub(crate) cpu_ticks: u64,
    /// The start time since boot, in clock ticks.
    pub(crate) start_ticks: u64,
    /// The resident memory, in pages.
    pub(crate) rss_pages: u64,
}

pub(crate) fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(line: &str) -> Option<Stat> {
    // The name in parentheses can contain any character, also parentheses.
    let (_, rest) = line.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    // proc(5) counts fields from 1; pid and name are cut off.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        cpu_ticks: (14..=17).map(number).sum::<Option<u64>>()?,
        start_ticks: number(22)?,
        rss_pages: number(24)?,
    })
}

/// Returns the children of a process, including zombies. Fails if the kernel does not list them.
pub(crate) fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match fs::read_to_string(thread?.path().join("children")) {
            Ok(list) => children.extend(
                list.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            ),
            // The thread has ended; its children are listed with another thread.
            Err(_) if kernel_lists_children() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

fn kernel_lists_children() -> bool {
    fs::exists("/proc/thread-self/children").unwrap_or(false)
}

pub(crate) fn uptime_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Bounds the search for descendants that fork faster than they are listed.
const PROCESS_TREE_MAX: usize = 10_000;

/// Returns a process and its descendants, the process first.
pub(crate) fn process_tree(pid: u32) -> Vec<u32> {
    let mut tree = vec![pid];
    let mut next = 0;
    while let Some(parent) = tree.get(next)
        && tree.len() < PROCESS_TREE_MAX
    {
        // A process that has exited has no children.
        let children = children(*parent).unwrap_or_default();
        tree.extend(children);
        next += 1;
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_can_contain_parentheses_and_spaces() {
        let line = "42 (a) b) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1900 20 21 22";
        let expected = Stat {
            state: 'Z',
            cpu_ticks: 11 + 12 + 13 + 14,
            start_ticks: 1900,
            rss_pages: 21,
        };
        assert_eq!(parse(line), Some(expected));
    }

    #[test]
    fn a_truncated_line_or_a_missing_process_has_no_stat() {
        assert_eq!(parse("42 (a) S 1 2"), None);
        assert_eq!(stat(u32::MAX), None);
    }

    #[test]
    fn a_process_is_the_first_of_its_tree() {
        let this = std::process::id();
        assert_eq!(process_tree(this)[0], this);
        assert!(stat(this).unwrap().rss_pages > 0);
    }
}
