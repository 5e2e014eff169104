use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cgroupfs::write_setting;
use super::controller::{Controller, Version};
use crate::FileError;
use crate::procfs::{Mount, mounts, read_own};

/// The mounted hierarchies, and the group of the calling process in each.
pub(crate) struct Hierarchies {
    /// The contents of `/proc/self/cgroup`.
    groups: String,
    mounts: Vec<Mount>,
}

impl Hierarchies {
    pub(super) fn read() -> Result<Self, FileError> {
        let error = |file| {
            let path = Path::new("/proc/self").join(file);
            |source| FileError::new("read", path, source)
        };
        Ok(Self {
            groups: read_own("cgroup").map_err(error("cgroup"))?,
            mounts: mounts().map_err(error("mountinfo"))?,
        })
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn new(groups: &str, mounts: &str) -> Self {
        Self {
            groups: groups.to_owned(),
            mounts: Mount::parse_all(mounts.as_bytes()),
        }
    }

    /// Returns the hierarchy that has this controller, or `None` if none is mounted.
    pub(crate) fn of(&self, controller: Controller) -> Option<Hierarchy> {
        self.locate(Some(controller.name()))
    }

    /// Returns the hierarchy that has the controller with this name, or that of version 2.
    fn locate(&self, name: Option<&str>) -> Option<Hierarchy> {
        // The format is hierarchy:controllers:path, or 0::path in version 2.
        let lines = || {
            let lines = self.groups.lines();
            lines.filter_map(|line| line.split_once(':')?.1.split_once(':'))
        };
        let v1_line = name.and_then(|name| {
            let (_, path) = lines().find(|(controllers, _)| list_contains(controllers, name))?;
            Some(path)
        });
        let (version, path) = match v1_line {
            Some(path) => (Version::V1, path),
            None => {
                let (_, path) = lines().find(|(controllers, _)| controllers.is_empty())?;
                (Version::V2, path)
            }
        };
        let own_group = self.mounts.iter().find_map(|mount| {
            let is_match = match version {
                Version::V1 => {
                    mount.kind == "cgroup" && list_contains(mount.options.to_str()?, name?)
                }
                Version::V2 => mount.kind == "cgroup2",
            };
            // A container may mount only its own part of the hierarchy.
            let below = Path::new(path).strip_prefix(&mount.root).ok()?;
            // A group outside of the cgroup namespace is not mounted, cgroup_namespaces(7).
            let is_mounted = !below.iter().any(|name| name == "..");
            (is_match && is_mounted).then(|| mount.point.join(below))
        })?;
        Some(Hierarchy { version, own_group })
    }

    /// Returns the parent for new groups of version 2 that need no controller, or `None` if none can be
    /// created.
    pub(super) fn freezer_parent(&self) -> Option<PathBuf> {
        let hierarchy = self.locate(None)?;
        // Without controllers, also a group that contains processes can have children.
        let has_controllers = |group: &Path| {
            fs::read_to_string(group.join("cgroup.controllers"))
                .is_ok_and(|list| !list.trim().is_empty())
        };
        let parent = hierarchy.parent().map(Path::to_owned);
        let own_group = hierarchy.own_group;
        parent.or_else(|| (!has_controllers(&own_group)).then_some(own_group))
    }
}

/// The hierarchy that has one controller, and the place for new groups in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(super) version: Version,
    /// The group of the calling process.
    pub(crate) own_group: PathBuf,
}

impl Hierarchy {
    /// Returns the parent for new groups, or `None` if none can be created.
    ///
    /// In version 2, a group that contains processes cannot enable controllers for its children,
    /// unless it is the root. A delegated group therefore contains one group with the runtime and
    /// its shims, and beside it the groups of the payloads.
    pub(super) fn parent(&self) -> Option<&Path> {
        match (self.version, self.own_group.parent()) {
            (Version::V1, _) => Some(&self.own_group),
            (Version::V2, Some(parent)) if is_delegated(parent) => Some(parent),
            (Version::V2, _) => is_root(&self.own_group).then_some(self.own_group.as_path()),
        }
    }

    /// Enables the controller for new groups, and returns their [`parent`](Self::parent).
    pub(super) fn prepare(&self, controller: Controller) -> Result<PathBuf, FileError> {
        let Some(parent) = self.parent() else {
            let message = "it contains the calling process, and its parent group is not delegated \
                           (for a systemd service, set Delegate=yes and DelegateSubgroup=)";
            let error = io::Error::new(io::ErrorKind::PermissionDenied, message);
            return Err(FileError::new(
                "create a control group in",
                &self.own_group,
                error,
            ));
        };
        if self.version == Version::V1 {
            return Ok(parent.to_owned());
        }
        let path = parent.join("cgroup.subtree_control");
        match write_setting(&path, &format!("+{}", controller.name())) {
            Ok(()) => Ok(parent.to_owned()),
            Err(error) => Err(FileError::new("write", path, error)),
        }
    }
}

/// Returns the path of the group in `dir` as `/proc/<pid>/cgroup` shows it.
pub(crate) fn proc_path(dir: &Path, mounts: &[Mount]) -> Option<PathBuf> {
    mounts.iter().find_map(|mount| {
        let below = dir.strip_prefix(&mount.point).ok()?;
        let is_hierarchy = mount.kind == "cgroup" || mount.kind == "cgroup2";
        is_hierarchy.then(|| mount.root.join(below))
    })
}

/// Every group except the root has this file, `cgroups(7)`.
fn is_root(group: &Path) -> bool {
    !group.join("cgroup.type").exists()
}

fn list_contains(list: &str, name: &str) -> bool {
    list.split(',').any(|item| item == name)
}

/// Returns true if systemd has delegated the group to a service, `systemd.resource-control(5)`,
/// "Delegate=".
fn is_delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        let result = rustix::fs::getxattr(group, OsStr::new(name), &mut value);
        result.is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::*;

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn find(controller: Controller, groups: &str) -> Option<(Version, PathBuf)> {
        let hierarchy = Hierarchies::new(groups, MOUNTS).of(controller)?;
        Some((hierarchy.version, hierarchy.own_group))
    }

    #[test]
    fn a_controller_is_found_in_its_hierarchy() {
        let groups = "4:memory:/docker/abc/d\n2:cpu,cpuacct:/a\n1:name=systemd:/\n0::/u\n";
        assert_eq!(
            find(Controller::Cpu, groups),
            Some((Version::V1, "/sys/fs/cgroup/cpu,cpuacct/a".into()))
        );
        assert_eq!(
            find(Controller::Memory, groups),
            Some((Version::V1, "/sys/fs/cgroup/memory/d".into()))
        );
        assert_eq!(
            find(Controller::Memory, "2:cpu:/a\n0::/u:v\n"),
            Some((Version::V2, "/sys/fs/cgroup/unified/u:v".into()))
        );
    }

    #[test]
    fn an_unmounted_hierarchy_is_not_found() {
        assert_eq!(
            find(Controller::Memory, "4:memory:/elsewhere\n0::/\n"),
            None
        );
        assert_eq!(find(Controller::Cpu, ""), None);
        // A group outside of the cgroup namespace, cgroup_namespaces(7).
        assert_eq!(find(Controller::Memory, "0::/../a\n"), None);
        let unmounted = Hierarchies::new("0::/\n", "").of(Controller::Cpu);
        assert_eq!(unmounted, None);
    }

    /// Users may mount file systems of their own with `fusermount3(1)`.
    #[test]
    fn a_mount_point_that_is_not_utf_8_does_not_hide_the_hierarchies() {
        const COUNT: &str = "VMM_TEST_HIERARCHIES";
        const TEST: &str = "control_group::hierarchy::tests::\
                            a_mount_point_that_is_not_utf_8_does_not_hide_the_hierarchies";
        let hierarchies = Hierarchies::read().unwrap();
        let found = Controller::ALL.map(|controller| hierarchies.of(controller));
        let found = found.iter().flatten().count();
        if let Some(expected) = env::var_os(COUNT) {
            assert_eq!(found.to_string().as_str(), expected);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join(OsStr::from_bytes(b"\xff"));
        fs::create_dir(&point).unwrap();
        // This test again, in a mount namespace of its own.
        let script = "mount -t tmpfs tmpfs \"$1\" || exit 77; shift; exec \"$@\"";
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([&point, &env::current_exe().unwrap()])
            .args([TEST, "--exact"])
            .env(COUNT, found.to_string())
            .output();
        match output {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(text.contains("1 passed"), "{text}");
            }
            Ok(output) if String::from_utf8_lossy(&output.stdout).contains("panicked") => {
                panic!("{output:?}")
            }
            skipped => println!("SKIPPED: cannot mount a file system: {skipped:?}"),
        }
    }

    #[test]
    fn a_directory_has_the_path_that_proc_shows() {
        let mounts = Mount::parse_all(MOUNTS.as_bytes());
        let path = |dir: &str| proc_path(Path::new(dir), &mounts);
        let group_dir = |point: &str| format!("/sys/fs/cgroup/{point}/vmm-box-a.1/b");
        for (dir, expected) in [
            (group_dir("cpu,cpuacct"), "/vmm-box-a.1/b"),
            (group_dir("memory"), "/docker/abc/vmm-box-a.1/b"),
            (group_dir("unified"), "/vmm-box-a.1/b"),
        ] {
            assert_eq!(path(&dir), Some(expected.into()));
        }
        assert_eq!(path("/elsewhere/vmm-box-a.1"), None);
    }

    /// Prepares a hierarchy of version 2.
    fn prepare(own_group: &Path) -> Result<PathBuf, FileError> {
        let hierarchy = Hierarchy {
            version: Version::V2,
            own_group: own_group.to_owned(),
        };
        hierarchy.prepare(Controller::Cpu)
    }

    #[test]
    fn new_groups_go_to_the_root_or_to_a_delegated_parent() {
        let parent = tempfile::tempdir().unwrap();
        let own = parent.path().join("own");
        fs::create_dir(&own).unwrap();
        for group in [parent.path(), &own] {
            fs::write(group.join("cgroup.subtree_control"), "").unwrap();
        }
        assert_eq!(prepare(&own).unwrap(), own);
        let enabled = fs::read_to_string(own.join("cgroup.subtree_control"));
        assert_eq!(enabled.unwrap(), "+cpu");

        fs::write(own.join("cgroup.type"), "domain").unwrap();
        assert_eq!(prepare(&own).unwrap_err().path, own);

        let flags = rustix::fs::XattrFlags::empty();
        if let Err(error) = rustix::fs::setxattr(parent.path(), "user.delegate", b"1", flags) {
            println!("SKIPPED the delegated parent: {error}");
            return;
        }
        assert_eq!(prepare(&own).unwrap(), parent.path());
    }
}
