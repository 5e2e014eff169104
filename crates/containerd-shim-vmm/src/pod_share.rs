use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use rustix::mount::{MountFlags, MountPropagationFlags};
use serde::Serialize;
use vmm_protocol::pod::{
    ContainerMount, ContainerSpec, MountOptions, PodDir, ProcessSpec, create_dir_in_root,
    create_file_in_root,
};
use vmm_protocol::write_file_unsynced;
use vmm_shim::{DetachedMount, MountPropagation};

use crate::error::ShimError;
use crate::rootfs;
use crate::state_dir::StateDir;
use crate::unmount::unmount_all;

/// What the guest of a pod sees of the host: the root file systems of its containers, the files and directories that are
/// mounted into them, and their specs.
///
/// ```text
/// files/   c/container.json  c/rootfs  c/mounts/0     written by the host only
///   │ read-only, private mount
///   ▼
/// pod/     c/container.json  c/rootfs  c/mounts/0     virtiofsd serves it; the mounts are here
/// ```
///
/// The guest can write to the mounts below `pod`, unless they are read-only, and to nothing else. So no symbolic link of
/// the guest is in a path that the host resolves.
#[derive(Clone, Debug)]
pub(crate) struct PodShare {
    shared: PodDir,
    files: PodDir,
}

/// What is mounted for a container.
#[derive(Debug)]
pub(crate) struct ContainerFiles {
    /// The root file system as containerd requests it.
    pub(crate) rootfs: Vec<Mount>,
    /// The root file system if containerd requests none.
    pub(crate) root: PathBuf,
    /// Files and directories of the host, by the number of the mount.
    pub(crate) sources: Vec<(usize, PathBuf)>,
}

impl PodShare {
    pub(crate) fn of(state: &StateDir) -> Self {
        Self {
            shared: state.pod(),
            files: state.files(),
        }
    }

    /// The directory that virtiofsd serves.
    pub(crate) fn path(&self) -> &Path {
        self.shared.path()
    }

    /// Creates the directories, and the mount between them.
    pub(crate) fn create(&self) -> Result<(), ShimError> {
        let (files, shared) = (self.files.path(), self.shared.path());
        for dir in [files, shared] {
            fs::create_dir_all(dir).map_err(ShimError::file("create", dir))?;
        }
        let mount = || -> io::Result<()> {
            let mount = DetachedMount::copy(files)?;
            mount.set_propagation(MountPropagation::Private)?;
            mount.set_read_only()?;
            mount.attach(shared)
        };
        mount().map_err(ShimError::file("mount", shared))
    }

    /// Mounts and writes what the guest needs for a container and its first process.
    pub(crate) fn add_container(
        &self,
        id: &str,
        container: &ContainerSpec,
        process: &ProcessSpec,
        files: &ContainerFiles,
    ) -> Result<(), ShimError> {
        self.mount_root(id, container, &process.cwd, files)?;
        for (number, source) in &files.sources {
            let options = container
                .mounts
                .get(*number)
                .map(|mount| &mount.options[..]);
            self.mount_source(id, *number, source, options.unwrap_or_default())
                .map_err(ShimError::file("mount", source))?;
        }
        write(&self.files.container_spec(id), container)?;
        self.add_process(id, "", process)
    }

    /// Writes the spec of a process.
    pub(crate) fn add_process(
        &self,
        id: &str,
        exec_id: &str,
        process: &ProcessSpec,
    ) -> Result<(), ShimError> {
        write(&self.files.process_spec(id, exec_id), process)
    }

    /// Removes the spec of a process that has ended.
    pub(crate) fn remove_process(&self, id: &str, exec_id: &str) {
        // It does not exist if it could not be written.
        let _ = fs::remove_file(self.files.process_spec(id, exec_id));
    }

    /// Removes the mounts and files of a container, also of one that was not added completely.
    pub(crate) fn remove_container(&self, id: &str) -> Result<(), ShimError> {
        unmount_all(&self.shared.container(id))?;
        let dir = self.files.container(id);
        unmount_all(&dir)?;
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ShimError::file("remove", dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Mounts the root file system where the guest cannot see it, and moves it when it is complete.
    fn mount_root(
        &self,
        id: &str,
        container: &ContainerSpec,
        working_dir: &Path,
        files: &ContainerFiles,
    ) -> Result<(), ShimError> {
        let staging = self.files.root(id);
        fs::create_dir_all(&staging).map_err(ShimError::file("create", &staging))?;
        let mount = || -> io::Result<()> {
            rootfs::mount_all(&files.rootfs, &staging)?;
            let root = if files.rootfs.is_empty() {
                &files.root
            } else {
                &staging
            };
            if container.read_only {
                create_mount_points(root, &container.mounts, &files.sources)?;
                create_working_dir(root, working_dir, &container.mounts)?;
            }
            let mount = DetachedMount::copy_all(root)?;
            mount.set_propagation(MountPropagation::Private)?;
            if container.read_only {
                mount.set_read_only()?;
            }
            mount.attach(&self.shared.root(id))
        };
        mount().map_err(ShimError::file("mount the root file system at", &staging))?;
        unmount_all(&staging)
    }

    /// Mounts a file or directory of the host.
    fn mount_source(
        &self,
        id: &str,
        number: usize,
        source: &Path,
        options: &[String],
    ) -> io::Result<()> {
        let point = self.files.mount(id, number);
        if let Some(parent) = point.parent() {
            fs::create_dir_all(parent)?;
        }
        if fs::metadata(source)?.is_dir() {
            fs::create_dir(&point)?;
        } else {
            File::create_new(&point)?;
        }
        let options = MountOptions::parse(options.iter().map(String::as_str));
        let mount = if options.is_recursive {
            DetachedMount::copy_all(source)?
        } else {
            DetachedMount::copy(source)?
        };
        mount.set_propagation(propagation(&options))?;
        if options.flags.contains(MountFlags::RDONLY) {
            mount.set_read_only()?;
        }
        mount.attach(&self.shared.mount(id, number))
    }
}

/// Returns the propagation at the host. The guest cannot mount at the host, so a mount never sends what it shares.
fn propagation(options: &MountOptions) -> MountPropagation {
    let receives = MountPropagationFlags::SHARED | MountPropagationFlags::DOWNSTREAM;
    match options.propagation {
        Some(propagation) if propagation.intersects(receives) => MountPropagation::Receive,
        _ => MountPropagation::Private,
    }
}

/// Creates the mount points of a root file system to which the guest will not be able to write.
fn create_mount_points(
    root: &Path,
    mounts: &[ContainerMount],
    sources: &[(usize, PathBuf)],
) -> io::Result<()> {
    for (number, mount) in mounts.iter().enumerate() {
        let destination = &mount.destination;
        if is_in_mount(destination, &mounts[..number]) {
            continue;
        }
        let source = sources.iter().find(|(source, _)| *source == number);
        let is_dir = match source {
            Some((_, source)) => fs::metadata(source)?.is_dir(),
            None => true,
        };
        if is_dir {
            create_dir_in_root(root, destination)?;
        } else {
            create_file_in_root(root, destination)?;
        }
    }
    Ok(())
}

/// Creates the working directory in such a root file system. The guest creates one that is in a mount.
fn create_working_dir(root: &Path, dir: &Path, mounts: &[ContainerMount]) -> io::Result<()> {
    if is_in_mount(dir, mounts) {
        return Ok(());
    }
    create_dir_in_root(root, dir).map(drop)
}

/// Returns whether a path is in one of the mounts, and not in the root file system.
fn is_in_mount(path: &Path, mounts: &[ContainerMount]) -> bool {
    let mut mounts = mounts.iter();
    mounts.any(|mount| path.starts_with(&mount.destination))
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), ShimError> {
    let write = || -> io::Result<()> {
        let text = serde_json::to_vec(value)?;
        write_file_unsynced(path, &text).map_err(io::Error::other)
    };
    write().map_err(ShimError::file("write", path))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::test_mounts::enter_namespace;

    /// Adds the container `c`, into which a directory of the host is mounted with these options.
    fn add_container(dir: &Path, options: &[&str], read_only: bool) -> PodShare {
        let state = StateDir::new(dir.join("state"));
        let share = PodShare::of(&state);
        share.create().unwrap();
        let root = dir.join("root");
        fs::create_dir(&root).unwrap();
        let mut container = ContainerSpec::default();
        container.read_only = read_only;
        container.mounts.push(ContainerMount {
            destination: "/srv/data".into(),
            kind: None,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        });
        let files = ContainerFiles {
            rootfs: Vec::new(),
            root,
            sources: vec![(0, dir.join("my data"))],
        };
        share
            .add_container("c", &container, &ProcessSpec::default(), &files)
            .unwrap();
        share
    }

    fn is_mounted(path: &Path) -> bool {
        vmm_protocol::procfs::mounts()
            .unwrap()
            .iter()
            .any(|mount| mount.point == path)
    }

    fn is_read_only(result: io::Result<File>) -> bool {
        result.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }

    #[test]
    fn the_end_of_a_container_leaves_the_mounts_of_the_host() {
        let name = "pod_share::tests::the_end_of_a_container_leaves_the_mounts_of_the_host";
        let Some(dir) = enter_namespace(name) else {
            return;
        };
        let share = add_container(&dir, &["rbind"], false);
        let (source, copy) = (dir.join("my data"), share.shared.mount("c", 0));
        assert!(copy.join("sub/file").exists());
        share.remove_container("c").unwrap();
        assert!(is_mounted(&source.join("sub")) && source.join("sub/file").exists());
        assert!(!is_mounted(&copy) && !share.files.container("c").exists());
        StateDir::new(dir.join("state")).remove().unwrap();
        assert!(!dir.join("state").exists());
    }

    #[test]
    fn a_mount_of_the_host_reaches_a_container_that_requests_it_only() {
        let name =
            "pod_share::tests::a_mount_of_the_host_reaches_a_container_that_requests_it_only";
        let Some(dir) = enter_namespace(name) else {
            return;
        };
        for (options, is_received) in [(["rbind", "rslave"], true), (["rbind", "rprivate"], false)]
        {
            let dir = if is_received {
                dir.clone()
            } else {
                let other = dir.join("other");
                fs::create_dir(&other).unwrap();
                std::os::unix::fs::symlink("../my data", other.join("my data")).unwrap();
                other
            };
            let share = add_container(&dir, &options, false);
            let late = dir.join("my data/late");
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "tmpfs"])
                .arg(&late)
                .status();
            assert!(mounted.unwrap().success());
            File::create(late.join("file")).unwrap();
            let copy = share.shared.mount("c", 0).join("late/file");
            assert_eq!(copy.exists(), is_received, "{options:?}");
            share.remove_container("c").unwrap();
            assert!(late.join("file").exists());
            let unmounted = Command::new("umount").arg(&late).status();
            assert!(unmounted.unwrap().success());
        }
    }

    #[test]
    fn what_a_container_can_only_read_is_read_only_on_the_host() {
        let name = "pod_share::tests::what_a_container_can_only_read_is_read_only_on_the_host";
        let Some(dir) = enter_namespace(name) else {
            return;
        };
        let share = add_container(&dir, &["rbind", "ro"], true);
        let volume = share.shared.mount("c", 0);
        for dir in [
            share.path(),
            &share.shared.root("c"),
            &volume,
            &volume.join("sub"),
        ] {
            assert!(
                is_read_only(File::create(dir.join("new"))),
                "{}",
                dir.display()
            );
        }
        // The guest mounts it there.
        assert!(share.shared.root("c").join("srv/data").is_dir());
        File::create(dir.join("my data/sub/new")).unwrap();
        share.remove_container("c").unwrap();
    }
}
