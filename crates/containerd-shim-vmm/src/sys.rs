//! Wraps the system calls that no crate wraps.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};

use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_READ_ONLY, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, loop_config,
};

/// Returns the number of a loop device that is not used, from an open `/dev/loop-control`.
pub(crate) fn find_free_loop_device(control: &File) -> io::Result<u32> {
    // SAFETY: the call has no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE.into()) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Connects a loop device to a file until the last user of the device closes it, `loop(4)`. Needs Linux 5.8.
pub(crate) fn configure_loop_device(
    device: &File,
    file: &File,
    is_read_only: bool,
) -> io::Result<()> {
    // SAFETY: every field of the structure can be zero.
    let mut config: loop_config = unsafe { mem::zeroed() };
    config.fd = file.as_raw_fd().cast_unsigned();
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR as u32;
    if is_read_only {
        config.info.lo_flags |= LO_FLAGS_READ_ONLY as u32;
    }
    // SAFETY: the kernel only reads `struct loop_config`.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE.into(), &raw const config) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the pid of the process that has connected to a socket: `SO_PEERCRED`, `unix(7)`.
pub(crate) fn peer_pid(socket: RawFd) -> io::Result<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = mem::size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `peer`, and refuses what is not a socket.
    let read = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match read {
        0 => Ok(peer.pid.cast_unsigned()),
        _ => Err(io::Error::last_os_error()),
    }
}
