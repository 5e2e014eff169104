use std::fs;
use std::io;
use std::path::PathBuf;

use super::cgroupfs::write_setting;
use super::controller::{Controller, Version, nesting_settings};
use super::hierarchy::Hierarchies;
use crate::FileError;

/// A control group to be created.
pub(super) struct NewGroup {
    version: Version,
    pub(super) dir: PathBuf,
}

impl NewGroup {
    /// Finds the directory for a group with this controller, and enables the controller there.
    pub(super) fn locate(
        hierarchies: &Hierarchies,
        controller: Controller,
        name: &str,
    ) -> Result<Self, FileError> {
        let hierarchy = hierarchies.of(controller).ok_or_else(|| {
            let name = controller.name();
            let message = format!("no mounted hierarchy has the controller {name}");
            let source = io::Error::new(io::ErrorKind::NotFound, message);
            FileError::new("find a hierarchy in", "/proc/self/cgroup", source)
        })?;
        Ok(Self {
            version: hierarchy.version,
            dir: hierarchy.prepare(controller)?.join(name),
        })
    }

    /// Creates the group, and limits the controller's resource to `amount` and the nesting of
    /// groups.
    pub(super) fn create(&self, controller: Controller, amount: u64) -> Result<(), FileError> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FileError::new("create", &self.dir, error));
            }
            // It exists if another controller shares the hierarchy.
            _ => {}
        }
        let settings = controller.settings(self.version, amount).into_iter();
        for setting in settings.chain(nesting_settings(self.version)) {
            let path = self.dir.join(setting.file);
            match write_setting(&path, &setting.value.to_string()) {
                Err(error) if setting.is_optional && error.kind() == io::ErrorKind::NotFound => {}
                // The limit of the parent group is already lower.
                Err(error)
                    if setting.is_bounded_by_parent
                        && error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(FileError::new("write", path, error)),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Limits the memory of a group in which the kernel provides only these files.
    fn limit_memory(kernel_files: &[&str]) -> (tempfile::TempDir, Result<(), FileError>) {
        let dir = tempfile::tempdir().unwrap();
        for file in kernel_files {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let group = NewGroup {
            version: Version::V2,
            dir: dir.path().to_owned(),
        };
        let result = group.create(Controller::Memory, 1 << 20);
        (dir, result)
    }

    #[test]
    fn nested_groups_are_limited_where_the_kernel_supports_it() {
        let (dir, result) =
            limit_memory(&["memory.max", "cgroup.max.descendants", "cgroup.max.depth"]);
        result.unwrap();
        let read = |file| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(read("cgroup.max.descendants"), "4096");
        assert_eq!(read("cgroup.max.depth"), "64");
    }

    #[test]
    fn memory_is_limited_on_a_kernel_without_swap_limits() {
        let (dir, result) = limit_memory(&["memory.max"]);
        result.unwrap();
        let limit = fs::read_to_string(dir.path().join("memory.max"));
        assert_eq!(limit.unwrap(), "1048576");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let (_, result) = limit_memory(&[]);
        assert!(result.unwrap_err().path.ends_with("memory.max"));
    }
}
