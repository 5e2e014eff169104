//! Wraps the system calls that no crate wraps, and those of KVM.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod kvm;

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

use crate::detached_mount::MountPropagation;

/// Makes a mount and all mounts below it read-only. Needs Linux 5.12.
pub(crate) fn set_read_only(mount: impl AsFd) -> io::Result<()> {
    set_mount_attributes(mount, libc::MOUNT_ATTR_RDONLY, 0)
}

/// Sets the propagation of a mount and of all mounts below it. Needs Linux 5.12.
pub(crate) fn set_propagation(mount: impl AsFd, propagation: MountPropagation) -> io::Result<()> {
    let propagation = match propagation {
        MountPropagation::Private => libc::MS_PRIVATE,
        MountPropagation::Receive => libc::MS_SLAVE,
    };
    set_mount_attributes(mount, 0, propagation)
}

fn set_mount_attributes(mount: impl AsFd, set: u64, propagation: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, and `attributes` is initialized and has the given size. The kernel
    // only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            mem::size_of_val(&attributes),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
