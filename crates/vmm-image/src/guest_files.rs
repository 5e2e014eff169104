use std::path::{Path, PathBuf};

/// The files that a guest boots, in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFiles {
    dir: PathBuf,
}

impl GuestFiles {
    /// The parameters of the kernel for these files, with the root file system as the first disk.
    pub const KERNEL_PARAMETERS: &str = "quiet vmm.root=/dev/vda vmm.rootfstype=ext4";

    /// Returns the files of this directory. They need not exist.
    pub fn of(dir: &Path) -> Self {
        let dir = dir.to_owned();
        Self { dir }
    }

    /// The Linux kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("kernel")
    }

    /// The initial RAM file system: the agent, and the modules that it loads.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// The root file system: a raw image of ext4.
    pub fn root(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
}
