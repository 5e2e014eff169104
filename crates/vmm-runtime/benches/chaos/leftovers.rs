//! Looks for processes, control groups and files that should be gone.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the processes that have `mark` in their arguments or environment. Zombies have neither.
pub(crate) fn processes(mark: &str) -> Vec<String> {
    let found = pids().filter(|pid| *pid != std::process::id() && mentions(*pid, mark));
    found.map(describe).collect()
}

/// Returns a shim that waits for a box, and that this runtime has started.
pub(crate) fn warm_shim_of(runtime: u32) -> Option<u32> {
    let children = format!("/proc/{runtime}/task");
    let mut children = entries(Path::new(&children))
        .into_iter()
        .flat_map(|thread| {
            let text = fs::read_to_string(thread.join("children")).unwrap_or_default();
            let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.collect::<Vec<u32>>()
        });
    let is_warm = |pid: &u32| {
        let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text.split(|byte| *byte == 0).nth(1) == Some(b"warm")
    };
    children.rfind(is_warm)
}

/// Returns the number of descriptors and the resident memory, in KiB, of a process.
pub(crate) fn usage(pid: u32) -> (usize, usize) {
    let descriptors = entries(Path::new(&format!("/proc/{pid}/fd"))).len();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = memory.and_then(|text| text.split_whitespace().next()?.parse().ok());
    (descriptors, memory.unwrap_or_default())
}

/// Returns the zombies whose parent is `parent`.
pub(crate) fn zombies_of(parent: u32) -> Vec<String> {
    let wanted = format!("PPid:\t{parent}\n");
    let is_one = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&wanted) && status.contains("State:\tZ")
    };
    pids().filter(is_one).map(describe).collect()
}

/// Returns the control groups of these boxes.
pub(crate) fn control_groups(ids: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = dirs.pop() {
        let children = entries(&dir).into_iter().filter(|path| path.is_dir());
        for child in children {
            let name = child.file_name().unwrap_or_default().to_string_lossy();
            let is_of = |id: &String| name.starts_with(&format!("vmm-box-{id}."));
            if ids.iter().any(is_of) {
                found.push(child);
            } else {
                dirs.push(child);
            }
        }
    }
    found
}

/// Returns the files that a home without boxes should not contain, and the temporary files that are
/// left.
pub(crate) fn files(root: &Path) -> Vec<PathBuf> {
    let home = root.join("home");
    let expected = [home.join("lock"), home.join("boxes")];
    let mut found = entries(&home);
    found.retain(|path| !expected.contains(path));
    found.extend(entries(&home.join("boxes")));
    found.extend(entries(&root.join("tmp")));
    found
}

pub(crate) fn mentions(pid: u32, mark: &str) -> bool {
    ["cmdline", "environ"].into_iter().any(|file| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(mark)
    })
}

fn describe(pid: u32) -> String {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&text).replace('\0', " ");
    format!("{pid}: {line}")
}

fn pids() -> impl Iterator<Item = u32> {
    let paths = entries(Path::new("/proc")).into_iter();
    paths.filter_map(|path| path.file_name()?.to_str()?.parse().ok())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
