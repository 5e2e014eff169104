//! Makes what a guest boots: a kernel, an initial RAM file system with the agent and the kernel
//! modules that it loads, and a root file system.
//!
//! [`ImageBuilder`] makes the [`GuestFiles`] from a directory or a tar archive, such as the output of
//! `mmdebstrap`, or of `skopeo` and `umoci`. It needs neither root nor mounts, but these programs of
//! the host: `mke2fs`, for an archive `tar`, and for compressed modules `xz`, `zstd` or `gzip`.
//!
//! Use this crate to make images in a program. From a shell, use `shimd image build`. For the store of
//! a daemon, use `vmm_runtime::ImageStore`.
//!
//! ```no_run
//! use std::path::Path;
//! use vmm_image::ImageBuilder;
//!
//! let files = ImageBuilder::new("rootfs.tar", "/usr/bin/vmm-agent").build(Path::new("/srv/debian"))?;
//! println!("boot {} with {}", files.kernel().display(), files.initrd().display());
//! # Ok::<(), vmm_image::BuildError>(())
//! ```
//!
//! # Why ext4
//!
//! Every Debian system has `mke2fs`, and the guest can also write to an ext4 file system that is not
//! shared. `mkfs.erofs` makes smaller files, but has to be installed, and a guest can only read them.

#![forbid(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-image needs Linux");

mod agent;
mod builder;
mod cpio;
mod error;
mod guest_files;
mod initrd;
mod kernel;
mod modules;
mod root;
mod tool;

pub use builder::ImageBuilder;
pub use cpio::CpioArchive;
pub use error::BuildError;
pub use guest_files::GuestFiles;

/// Compiles the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
