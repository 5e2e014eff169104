use std::io;
use std::path::{Path, PathBuf};

use vmm_protocol::FileError;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file of the image cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// What was unpacked cannot be removed.
    #[error(transparent)]
    Remove(#[from] FileError),
    /// A program of the host cannot be started.
    #[error("cannot run {program}; install the package {package}")]
    ToolMissing {
        /// The name of the program.
        program: &'static str,
        /// The package of Debian that has it.
        package: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// A program of the host has failed.
    #[error("{program} failed: {stderr}")]
    ToolFailed {
        /// The name of the program.
        program: &'static str,
        /// What it has printed.
        stderr: String,
    },
    /// `/boot` has no kernel whose modules are installed.
    #[error(
        "no kernel vmlinuz-VERSION with modules found in {}; install linux-image-cloud-amd64, or name a \
         kernel",
        dir.display()
    )]
    NoKernel {
        /// The directory that was searched.
        dir: PathBuf,
    },
    /// A file is not a kernel that QEMU can boot.
    #[error("{} is not a Linux kernel for x86-64; use a file such as /boot/vmlinuz", path.display())]
    NotAKernel {
        /// The path of the file.
        path: PathBuf,
    },
    /// The kernel lacks a driver that a guest needs.
    #[error(
        "module {name} not found in {}, nor listed in its modules.builtin; use the modules of the kernel",
        dir.display()
    )]
    ModuleNotFound {
        /// The name of the module.
        name: String,
        /// The directory that was searched.
        dir: PathBuf,
    },
    /// A file is not a kernel module.
    #[error("{} is not a kernel module: {reason}; install the kernel again", path.display())]
    NotAModule {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },
    /// The agent cannot run in a guest.
    #[error(
        "{} cannot be the agent of a guest: {reason}; build vmm-agent with RUSTFLAGS='-C \
         target-feature=+crt-static'",
        path.display()
    )]
    NotAnAgent {
        /// The path of the program.
        path: PathBuf,
        /// What is wrong with the program.
        reason: String,
    },
    /// A path does not name a root file system.
    #[error("{} is not a root file system: {reason}", path.display())]
    NotARoot {
        /// The path of the directory or archive.
        path: PathBuf,
        /// What it is instead, and what to do.
        reason: &'static str,
    },
}

impl BuildError {
    /// Returns a function that wraps the error of reading a file.
    pub(crate) fn read(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read {
            path: path.clone(),
            source,
        }
    }

    /// Returns a function that wraps the error of writing a file.
    pub(crate) fn write(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write {
            path: path.clone(),
            source,
        }
    }
}
