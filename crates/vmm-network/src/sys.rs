//! Wraps the system calls that no crate wraps.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// An instruction of a BPF program: `struct bpf_insn`.
pub(crate) type Instruction = [u8; 8];

/// `BPF_SK_LOOKUP`.
const SK_LOOKUP: u32 = 36;

/// Creates a BPF map that holds one socket.
pub(crate) fn create_socket_map() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct MapCreate {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    const BPF_MAP_CREATE: libc::c_long = 0;
    const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
    let attributes = MapCreate {
        map_type: BPF_MAP_TYPE_SOCKMAP,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
    };
    // SAFETY: the structure has no pointers, and the command returns a descriptor.
    unsafe { bpf_fd(BPF_MAP_CREATE, &attributes) }
}

/// Puts a socket into the map.
pub(crate) fn set_socket(map: &OwnedFd, socket: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct MapUpdateElem {
        map_fd: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
    let key = 0_u32;
    let value = u64::from(number(socket));
    let attributes = MapUpdateElem {
        map_fd: number(map.as_fd()),
        padding: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    // SAFETY: the pointers are those of a key and a value as the map has them.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attributes) }.map(drop)
}

/// Loads a program that selects sockets for connections.
pub(crate) fn load_socket_lookup(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct ProgLoad {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
    let attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_SK_LOOKUP,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type: SK_LOOKUP,
    };
    // SAFETY: the pointers are those of the instructions, with their number, and of a text that ends with a NUL byte.
    // The command returns a descriptor.
    unsafe { bpf_fd(BPF_PROG_LOAD, &attributes) }
}

/// Lets a program select sockets in a network namespace until the returned descriptor is closed.
pub(crate) fn attach_socket_lookup(
    program: &OwnedFd,
    namespace: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct LinkCreate {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    const BPF_LINK_CREATE: libc::c_long = 28;
    let attributes = LinkCreate {
        prog_fd: number(program.as_fd()),
        target_fd: number(namespace),
        attach_type: SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: the structure has no pointers, and the command returns a descriptor.
    unsafe { bpf_fd(BPF_LINK_CREATE, &attributes) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Calls `bpf(2)`.
///
/// # Safety
///
/// The attributes have to be those of the command, and their pointers valid.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    let size = mem::size_of::<T>();
    // SAFETY: the kernel reads so many bytes, and what the caller guarantees.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Calls `bpf(2)` with a command that returns a descriptor.
///
/// # Safety
///
/// As [`bpf`], and the command has to return a descriptor.
unsafe fn bpf_fd<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: guaranteed by the caller.
    let fd = unsafe { bpf(command, attributes) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
