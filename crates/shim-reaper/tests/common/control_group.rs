//! Control groups that a test creates.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use nix::unistd::Uid;

/// A control group that is removed when this is dropped.
pub struct ControlGroup(pub PathBuf);

impl ControlGroup {
    /// Creates a group of version 1 or 2. Returns `None` where that is not possible.
    pub fn create(test: &str, version: u32) -> Option<Self> {
        // Machines with version 2 need not have version 1.
        if version == 1 && hierarchy(1).is_none() {
            eprintln!("SKIPPED: no control groups of version 1");
            return None;
        }
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let number = CREATED.fetch_add(1, Relaxed);
        let name = format!("shim-reaper-{test}-{}-{number}", process::id());
        let root = hierarchy(version).filter(|_| Uid::effective().is_root());
        let path = root.map(|root| root.join(name));
        let created = path.filter(|path| fs::create_dir(path).is_ok());
        if created.is_none() {
            super::skip(&format!(
                "this needs root and control groups of version {version}"
            ));
        }
        created.map(Self)
    }

    pub fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }

    /// Returns the processes in the group, without the groups below it.
    pub fn members(&self) -> Vec<u32> {
        let list = fs::read_to_string(self.0.join("cgroup.procs")).unwrap();
        list.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        super::eventually_blocking("the group is removed", || fs::remove_dir(&self.0).is_ok());
    }
}

/// Returns where control groups of this version are mounted.
fn hierarchy(version: u32) -> Option<PathBuf> {
    let kind = ["cgroup", "cgroup2"][version as usize - 1];
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == kind && (version == 2 || fields[3].contains("freezer")))
        .map(|fields| PathBuf::from(fields[1]))
}
