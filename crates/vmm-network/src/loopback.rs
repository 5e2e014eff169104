use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::sys;

/// Accepts the connections to all TCP ports of 127.0.0.0/8 in a namespace.
///
/// The local address of a connection has the port that its client has requested. The kernel runs a BPF program of the
/// type `BPF_PROG_TYPE_SK_LOOKUP` for each request, which selects the socket that accepts it. Dropping this value removes
/// the program.
#[derive(Debug)]
pub struct LoopbackListener {
    listener: TcpListener,
    _program: OwnedFd,
}

impl LoopbackListener {
    /// Listens in the namespace of this thread, which is this file.
    pub(crate) fn bind(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let sockets = sys::create_socket_map()?;
        sys::set_socket(&sockets, listener.as_fd())?;
        let program = sys::load_socket_lookup(&select_socket(sockets.as_fd()))?;
        let _program = sys::attach_socket_lookup(&program, namespace)?;
        Ok(Self { listener, _program })
    }

    /// Returns the socket that accepts the connections.
    pub fn socket(&self) -> &TcpListener {
        &self.listener
    }
}

/// Offsets in `struct bpf_sk_lookup`.
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;

/// The first byte of 127.0.0.0/8. With IPv6, the field is 0.
const LOOPBACK: i32 = 127;

/// `BPF_PSEUDO_MAP_FD`.
const MAP_FD: u8 = 1;

/// Functions of the kernel, and the result of the program with which the lookup goes on.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
const SK_PASS: i32 = 1;

/// Returns a program that selects the only socket of the map for a connection to a loopback address.
#[rustfmt::skip]
fn select_socket(sockets: BorrowedFd<'_>) -> [sys::Instruction; 21] {
    let map = sockets.as_raw_fd();
    [
        instruction(0xbf, 6, 1, 0, 0),                // r6 = context
        instruction(0x61, 2, 6, PROTOCOL, 0),         // r2 = protocol
        instruction(0x55, 2, 0, 16, libc::IPPROTO_TCP), // if r2 != TCP goto pass
        instruction(0x71, 2, 6, LOCAL_IP4, 0),        // r2 = first byte of the address
        instruction(0x55, 2, 0, 14, LOOPBACK),        // if r2 != 127 goto pass
        instruction(0x62, 10, 0, -4, 0),              // the key of the socket
        instruction(0x18, 1, MAP_FD, 0, map),         // r1 = map, of two instructions
        instruction(0, 0, 0, 0, 0),
        instruction(0xbf, 2, 10, 0, 0),               // r2 = address of the key
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),  // r0 = socket
        instruction(0x15, 0, 0, 7, 0),                // if r0 == NULL goto pass
        instruction(0xbf, 7, 0, 0, 0),                // r7 = socket
        instruction(0xbf, 1, 6, 0, 0),
        instruction(0xbf, 2, 7, 0, 0),
        instruction(0xb7, 3, 0, 0, 0),
        instruction(0x85, 0, 0, 0, SK_ASSIGN),        // sk_assign(context, socket, 0)
        instruction(0xbf, 1, 7, 0, 0),
        instruction(0x85, 0, 0, 0, SK_RELEASE),       // sk_release(socket)
        instruction(0xb7, 0, 0, 0, SK_PASS),          // pass: r0 = SK_PASS
        instruction(0x95, 0, 0, 0, 0),                // return r0
    ]
}

/// Encodes an instruction, as `struct bpf_insn` on a little-endian machine.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> sys::Instruction {
    let (offset, value) = (offset.to_le_bytes(), value.to_le_bytes());
    let registers = to | from << 4;
    [
        code, registers, offset[0], offset[1], value[0], value[1], value[2], value[3],
    ]
}
