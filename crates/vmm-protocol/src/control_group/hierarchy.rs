use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::group::set;
use super::setting::Controller;
use crate::FileError;

/// Where new groups with one controller go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    /// The group of this process.
    own: PathBuf,
}

/// Of the kernel's two interfaces; a host can have some controllers in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

impl Hierarchy {
    pub(super) fn of(controller: Controller) -> io::Result<Self> {
        let found = Self::of_each([controller])?.next();
        found.ok_or_else(|| {
            let message = format!("there is no mounted hierarchy with {}", controller.name());
            io::Error::new(io::ErrorKind::NotFound, message)
        })
    }

    /// Of those that have one.
    pub(super) fn of_each(
        controllers: impl IntoIterator<Item = Controller>,
    ) -> io::Result<impl Iterator<Item = Self>> {
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let controllers = controllers.into_iter();
        Ok(controllers.filter_map(move |controller| Self::find(controller, &groups, &mounts)))
    }

    fn find(controller: Controller, groups: &str, mounts: &str) -> Option<Self> {
        let name = controller.name();
        // hierarchy:controllers:path, and 0::path for version 2.
        let lines = || {
            groups
                .lines()
                .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        };
        let in_v1 = lines().find(|(controllers, _)| has(controllers, name));
        let (version, path) = match in_v1 {
            Some((_, path)) => (Version::V1, path),
            None => (Version::V2, lines().find(|(none, _)| none.is_empty())?.1),
        };
        let own = mounts.lines().find_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(3);
            let (root, point) = (mount.next()?, mount.next()?);
            let mut file_system = file_system.split(' ');
            let fits = match version {
                Version::V1 => file_system.next()? == "cgroup" && has(file_system.nth(1)?, name),
                Version::V2 => file_system.next()? == "cgroup2",
            };
            // A container may have only its own part of the hierarchy mounted.
            let below = Path::new(path).strip_prefix(root).ok()?;
            fits.then(|| Path::new(point).join(below))
        })?;
        Some(Self { version, own })
    }

    /// Returns the group that new ones are made in; `None` where none can be made.
    ///
    /// In version 2, a group with processes cannot give controllers to groups within, unless it is
    /// the root. So a delegated group holds the runtime and its shims in one group, and payloads
    /// in others beside that.
    pub(super) fn parent(&self) -> Option<&Path> {
        match (self.version, self.own.parent()) {
            (Version::V1, _) => Some(&self.own),
            (Version::V2, Some(parent)) if is_delegated(parent) => Some(parent),
            (Version::V2, _) => is_root(&self.own).then_some(self.own.as_path()),
        }
    }

    /// Returns the [`parent`](Self::parent), ready for new groups with this controller.
    pub(super) fn prepare(&self, controller: Controller) -> Result<PathBuf, FileError> {
        let Some(parent) = self.parent() else {
            let message = "it holds this process itself, and is in no delegated group";
            let error = io::Error::new(io::ErrorKind::PermissionDenied, message);
            return Err(FileError::new("divide", &self.own, error));
        };
        if self.version == Version::V1 {
            return Ok(parent.to_owned());
        }
        let enabled = parent.join("cgroup.subtree_control");
        match set(&enabled, &format!("+{}", controller.name())) {
            Ok(()) => Ok(parent.to_owned()),
            Err(error) => Err(FileError::new("write", enabled, error)),
        }
    }
}

/// Every other group has this file, `cgroups(7)`.
fn is_root(group: &Path) -> bool {
    !group.join("cgroup.type").exists()
}

fn has(list: &str, name: &str) -> bool {
    list.split(',').any(|item| item == name)
}

/// As systemd marks what it leaves to a service, systemd.resource-control(5), "Delegate=".
fn is_delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        let read = rustix::fs::getxattr(group, OsStr::new(name), &mut value);
        read.is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn found(controller: Controller, groups: &str) -> Option<(Version, PathBuf)> {
        let hierarchy = Hierarchy::find(controller, groups, MOUNTS)?;
        Some((hierarchy.version, hierarchy.own))
    }

    #[test]
    fn a_controller_is_found_in_the_hierarchy_that_has_it() {
        let groups = "4:memory:/docker/abc/d\n2:cpu,cpuacct:/a\n1:name=systemd:/\n0::/u\n";
        assert_eq!(
            found(Controller::Cpu, groups),
            Some((Version::V1, "/sys/fs/cgroup/cpu,cpuacct/a".into()))
        );
        assert_eq!(
            found(Controller::Memory, groups),
            Some((Version::V1, "/sys/fs/cgroup/memory/d".into()))
        );
        assert_eq!(
            found(Controller::Memory, "2:cpu:/a\n0::/u:v\n"),
            Some((Version::V2, "/sys/fs/cgroup/unified/u:v".into()))
        );
    }

    #[test]
    fn a_hierarchy_that_is_not_mounted_or_not_seen_is_none() {
        assert_eq!(
            found(Controller::Memory, "4:memory:/elsewhere\n0::/\n"),
            None
        );
        assert_eq!(found(Controller::Cpu, ""), None);
        let unmounted = Hierarchy::find(Controller::Cpu, "0::/\n", "");
        assert_eq!(unmounted, None);
    }

    /// In version 2.
    fn prepared_in(own: &Path) -> Result<PathBuf, FileError> {
        let hierarchy = Hierarchy {
            version: Version::V2,
            own: own.to_owned(),
        };
        hierarchy.prepare(Controller::Cpu)
    }

    #[test]
    fn a_group_with_processes_is_divided_only_at_the_root_or_beside_it_where_that_is_delegated() {
        let around = tempfile::tempdir().unwrap();
        let own = around.path().join("own");
        fs::create_dir(&own).unwrap();
        for group in [around.path(), &own] {
            fs::write(group.join("cgroup.subtree_control"), "").unwrap();
        }
        assert_eq!(prepared_in(&own).unwrap(), own);
        let enabled = fs::read_to_string(own.join("cgroup.subtree_control"));
        assert_eq!(enabled.unwrap(), "+cpu");

        fs::write(own.join("cgroup.type"), "domain").unwrap();
        assert_eq!(prepared_in(&own).unwrap_err().path, own);

        let flags = rustix::fs::XattrFlags::empty();
        if let Err(error) = rustix::fs::setxattr(around.path(), "user.delegate", b"1", flags) {
            println!("SKIPPED, in part: {error}");
            return;
        }
        assert_eq!(prepared_in(&own).unwrap(), around.path());
    }
}
