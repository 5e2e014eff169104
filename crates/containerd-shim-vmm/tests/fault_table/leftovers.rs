//! What a container has left on the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fixture::{Fixture, Runtime};

/// The directories of control groups.
pub(crate) type Groups = BTreeSet<PathBuf>;

/// What is on the host before a container is created.
pub(crate) struct Baseline {
    entries: BTreeSet<String>,
}

impl Baseline {
    pub(crate) fn take(fixture: &Fixture, runtime: Runtime) -> Self {
        Self {
            entries: find(fixture, runtime),
        }
    }

    /// Waits until nothing of a container is left, and returns what is left after a timeout.
    pub(crate) fn leftovers(
        &self,
        fixture: &Fixture,
        runtime: Runtime,
        id: &str,
        groups: &Groups,
    ) -> Vec<String> {
        let start = Instant::now();
        loop {
            let mut found = find(fixture, runtime);
            found.extend(processes_in_group_of(id).into_iter().map(show_process));
            let groups = groups.iter().filter(|group| group.exists());
            found.extend(groups.map(|group| format!("cgroup {}", group.display())));
            let left: Vec<String> = found.difference(&self.entries).cloned().collect();
            if left.is_empty() || start.elapsed() > runtime.timeout() {
                return left;
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// Returns what there is of containers.
fn find(fixture: &Fixture, runtime: Runtime) -> BTreeSet<String> {
    let containerd = &fixture.containerd;
    let processes = containerd.processes().into_iter().map(show_process);
    let mut found: BTreeSet<String> = processes.collect();
    let dir = containerd.path("");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let of_containerd = mounts.filter(|point| Path::new(point).starts_with(&dir));
    found.extend(of_containerd.map(|point| format!("mount {point}")));
    let mut dirs = vec![
        containerd.pods(),
        containerd.path("state/io.containerd.runtime.v2.task/default"),
        // Each file keeps a network namespace.
        PathBuf::from("/run/netns"),
    ];
    if runtime == Runtime::Runc {
        // Its sockets and its state are in directories of the whole host.
        dirs.extend(["/run/containerd/s", "/run/containerd/runc/default"].map(PathBuf::from));
    }
    let files = dirs.iter().flat_map(|dir| entries(dir));
    found.extend(files.map(|path| format!("file {}", path.display())));
    found
}

fn show_process(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} {}", name.trim())
}

/// Returns the control groups that belong to a container that runs.
pub(crate) fn groups_of(fixture: &Fixture, id: &str) -> Groups {
    let mut groups = Groups::new();
    for pod in entries(&fixture.containerd.pods()) {
        for bx in entries(&pod.join("home/boxes")) {
            let hint = fs::read_to_string(bx.join("cgroup")).unwrap_or_default();
            groups.extend(hint.lines().map(PathBuf::from));
        }
    }
    for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
        let group = hierarchy.join("default").join(id);
        groups.extend(Some(group).filter(|group| group.exists()));
    }
    groups
}

/// Returns the processes in a control group with the name of a container of runc.
fn processes_in_group_of(id: &str) -> Vec<u32> {
    let pids =
        entries(Path::new("/proc")).filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    let is_in_group = |pid: &u32| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.contains(&format!("/{id}"))
    };
    pids.filter(is_in_group).collect()
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}
