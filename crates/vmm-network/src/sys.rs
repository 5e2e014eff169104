//! Wraps the system call that no crate wraps.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

/// Makes an open `/dev/net/tun` a tap device without a name of its own: the kernel replaces `%d` in the
/// pattern by a number. Returns the name.
pub(crate) fn create_tap(file: &File, pattern: &str) -> io::Result<String> {
    // SAFETY: every field of the structure can be zero.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays 0.
    let name = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
    for (byte, source) in name.zip(pattern.bytes()) {
        *byte = source as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the kernel reads and writes `struct ifreq`.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = request.ifr_name.map(|byte| byte as u8);
    let name = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
    Ok(name.to_string_lossy().into_owned())
}
