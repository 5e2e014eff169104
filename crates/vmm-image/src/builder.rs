use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vmm_protocol::remove_tree;

use crate::kernel::Kernel;
use crate::{BuildError, GuestFiles, initrd, root};

const BOOT_DIR: &str = "/boot";
const MODULES_DIR: &str = "/lib/modules";

/// Builds the files that a guest boots.
///
/// ```no_run
/// use std::path::Path;
/// use vmm_image::ImageBuilder;
///
/// ImageBuilder::new("/srv/rootfs", "/usr/bin/vmm-agent")
///     .kernel("/srv/vmlinuz")
///     .modules("/srv/modules")
///     .build(Path::new("/srv/image"))?;
/// # Ok::<(), vmm_image::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    root: PathBuf,
    agent: PathBuf,
    kernel: Option<PathBuf>,
    modules: Option<PathBuf>,
}

impl ImageBuilder {
    /// Creates a builder for a root file system, a directory or a tar archive, and for the static
    /// program `vmm-agent`.
    pub fn new(root: impl Into<PathBuf>, agent: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            agent: agent.into(),
            kernel: None,
            modules: None,
        }
    }

    /// Sets the kernel: a file such as `/boot/vmlinuz`. By default, the newest `/boot/vmlinuz-VERSION`
    /// whose modules are installed.
    #[must_use]
    pub fn kernel(mut self, file: impl Into<PathBuf>) -> Self {
        self.kernel = Some(file.into());
        self
    }

    /// Sets the directory with the modules of the kernel, and with its file `modules.builtin`. By
    /// default, `/lib/modules/VERSION`.
    #[must_use]
    pub fn modules(mut self, dir: impl Into<PathBuf>) -> Self {
        self.modules = Some(dir.into());
        self
    }

    /// Builds the files in an existing directory. An archive is unpacked to the directory
    /// `rootfs.unpacked` there for that time.
    ///
    /// Owners and modes of the root file system are those of the files, or of the archive if this process
    /// is root. Without root, the files of an archive belong to the user of this process.
    ///
    /// This function blocks, for seconds if the root file system is large.
    ///
    /// # Errors
    ///
    /// [`BuildError`]. The directory then has a part of the files.
    pub fn build(&self, dir: &Path) -> Result<GuestFiles, BuildError> {
        let files = GuestFiles::of(dir);
        let kernel = match &self.kernel {
            Some(path) => Kernel::open(path)?,
            None => Kernel::find_newest(Path::new(BOOT_DIR), Path::new(MODULES_DIR))?,
        };
        let modules = match &self.modules {
            Some(dir) => dir.clone(),
            None => Path::new(MODULES_DIR).join(&kernel.version),
        };
        let initrd = initrd::build(&self.agent, &modules)?;
        write_readable(&files.initrd(), &initrd)?;
        write_readable(&files.kernel(), &kernel.image)?;
        self.build_root(dir, &files.root())?;
        Ok(files)
    }

    fn build_root(&self, dir: &Path, image: &Path) -> Result<(), BuildError> {
        let metadata = fs::metadata(&self.root).map_err(BuildError::read(&self.root))?;
        if metadata.is_dir() {
            return root::create(&self.root, image);
        }
        let unpacked = dir.join("rootfs.unpacked");
        root::unpack(&self.root, &unpacked)?;
        root::create(&unpacked, image)?;
        // The archive may have directories that their owner cannot write.
        remove_tree(&unpacked, || false)?;
        Ok(())
    }
}

/// Writes a file that the user of a VMM can read, whatever the umask: the directory decides who reaches
/// it.
fn write_readable(path: &Path, contents: &[u8]) -> Result<(), BuildError> {
    fs::write(path, contents)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o644)))
        .map_err(BuildError::write(path))
}
