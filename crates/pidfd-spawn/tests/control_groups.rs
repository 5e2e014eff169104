//! Children that are born in a control group.
#![allow(clippy::panic, clippy::unwrap_used, unsafe_code)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;

use common::own_process::in_own_process;
use common::{eventually, is_root, shell, skip, stdout_of};
use pidfd_spawn::{Command, Step};

/// A control group that is removed when this is dropped.
struct Group(PathBuf);

impl Group {
    fn new(test: &str, version: u32) -> Option<Self> {
        let Some(root) = hierarchy(version).filter(|_| is_root()) else {
            skip(&format!(
                "this needs root and control groups of version {version}"
            ));
            return None;
        };
        let path = root.join(format!("pidfd-spawn-{test}-{}", process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(error) => {
                skip(&format!("cannot create a control group: {error}"));
                None
            }
        }
    }

    fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }

    fn name(&self) -> &str {
        self.0.file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        common::eventually("the group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

/// Where control groups of this version are mounted.
fn hierarchy(version: u32) -> Option<PathBuf> {
    let kind = ["cgroup", "cgroup2"][version as usize - 1];
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        // A controller that puts no condition on new members.
        .find(|fields| fields[2] == kind && (version == 2 || fields[3].contains("freezer")))
        .map(|fields| PathBuf::from(fields[1]))
}

fn membership() -> Command {
    let mut command = Command::new("/bin/cat");
    command.arg("/proc/self/cgroup");
    command
}

#[test]
fn a_child_is_born_in_its_group() {
    let Some(group) = Group::new("born", 2) else {
        return;
    };
    let mut command = membership();
    command.cgroup(group.open());
    for _ in 0..3 {
        let groups = stdout_of(&mut command);
        let line = groups.lines().find(|line| line.starts_with("0::")).unwrap();
        assert!(line.ends_with(group.name()), "{groups}");
    }
}

#[test]
fn a_forked_child_joins_its_group() {
    let Some(group) = Group::new("forked", 2) else {
        return;
    };
    let mut command = membership();
    command.cgroup(group.open());
    // SAFETY: the closure does nothing.
    unsafe { command.pre_exec(|| Ok(())) };
    assert!(stdout_of(&mut command).contains(group.name()));
}

#[test]
fn a_child_joins_a_group_of_version_1() {
    // Machines without them need not have them.
    if hierarchy(1).is_none() {
        return eprintln!("SKIPPED: no control groups of version 1");
    }
    let Some(group) = Group::new("version-1", 1) else {
        return;
    };
    assert!(stdout_of(membership().cgroup(group.open())).contains(group.name()));
}

#[test]
fn a_child_joins_a_group_in_each_hierarchy() {
    if hierarchy(1).is_none() || hierarchy(2).is_none() {
        return eprintln!("SKIPPED: no control groups of version 1 beside those of version 2");
    }
    let (Some(old), Some(new)) = (Group::new("each-1", 1), Group::new("each-2", 2)) else {
        return;
    };
    for groups in [[&old, &new], [&new, &old]] {
        let mut command = membership();
        for group in groups {
            command.cgroup(group.open());
        }
        let memberships = stdout_of(&mut command);
        for group in groups {
            assert!(memberships.contains(group.name()), "{memberships}");
        }
    }
}

#[test]
fn another_user_can_be_put_into_a_group() {
    let Some(group) = Group::new("user", 2) else {
        return;
    };
    let mut command = membership();
    command.cgroup(group.open()).uid(common::OTHER_USER);
    assert!(stdout_of(&mut command).contains(group.name()));
}

#[test]
fn the_parent_survives_when_a_full_group_is_killed_as_a_whole() {
    let test = "the_parent_survives_when_a_full_group_is_killed_as_a_whole";
    in_own_process(test, || {
        let Some(group) = Group::new("full", 2) else {
            return;
        };
        // On some machines version 1 has the controller.
        if fs::write(group.0.join("memory.max"), "8M").is_err() {
            return eprintln!("SKIPPED: version 2 does not have the memory controller");
        }
        fs::write(group.0.join("memory.oom.group"), "1").unwrap();
        let mut children = Vec::new();
        for _ in 0..30 {
            let mut command = shell("x=$(head -c 2000000 /dev/zero | tr '\\0' x); sleep 300");
            // It may be killed before it executes the shell.
            children.extend(command.cgroup(group.open()).spawn());
        }
        // The last children can still be allocating.
        eventually("the group is killed for lack of memory", || {
            let events = fs::read_to_string(group.0.join("memory.events")).unwrap();
            !events.contains("oom_group_kill 0")
        });
        fs::write(group.0.join("cgroup.kill"), "1").unwrap();
        for mut child in children {
            child.wait().unwrap();
        }
    });
}

#[test]
fn a_group_that_does_not_exist_any_more_is_an_error_of_its_step() {
    let Some(group) = Group::new("removed", 2) else {
        return;
    };
    let dir = group.open();
    drop(group);
    let error = membership().cgroup(dir).spawn().unwrap_err();
    assert_eq!(error.step(), Step::Cgroup);
}

#[test]
fn a_directory_that_is_not_a_group_is_an_error_of_its_step() {
    let dir = File::open(Path::new("/tmp")).unwrap();
    let error = membership().cgroup(dir).spawn().unwrap_err();
    assert_eq!(error.step(), Step::Cgroup);
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}
