//! Redirects the frames of an interface to a tap device, and back.
//!
//! As `tc qdisc add dev FROM ingress` and `tc filter add dev FROM parent ffff: protocol all u32 match u8 0 0
//! action mirred egress redirect dev TO` do.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::configure::{link_message, set_mtu, set_up};
use crate::message::{Attributes, Message, read_u32};
use crate::socket::Socket;
use crate::sys;

const TUN: &str = "/dev/net/tun";

/// How the names of the tap devices begin.
pub(crate) const TAP_PREFIX: &str = "vmmtap";

/// Handles and parents of qdiscs.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff1;

/// The preference of the filters, by which they are recognized. The protocol is `ETH_P_ALL`.
const FILTER_INFO: u32 = (0x564d << 16) | (libc::ETH_P_ALL as u16).to_be() as u32;

const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: i32 = 1;
const TC_ACT_STOLEN: i32 = 4;

/// `struct tc_u32_sel` with one key, which matches every frame.
const MATCH_ALL: [u8; 32] = {
    let mut selector = [0; 32];
    let (flags, number_of_keys) = (0, 2);
    selector[flags] = TC_U32_TERMINAL;
    selector[number_of_keys] = 1;
    selector
};
const TC_U32_TERMINAL: u8 = 1;

/// The offset of the interface in `struct tc_mirred`.
const MIRRED_IFINDEX: usize = 24;

const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// A tap device that exists as long as its descriptor.
pub(crate) struct TapDevice {
    pub(crate) fd: OwnedFd,
    index: u32,
}

impl TapDevice {
    /// Creates a tap device in the namespace of this thread, and sets it up.
    pub(crate) fn create(socket: &mut Socket, mtu: u32) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(TUN)?;
        let name = sys::create_tap(&file, &format!("{TAP_PREFIX}%d"))?;
        let index = socket.index_of(&name)?;
        set_mtu(socket, index, mtu)?;
        // The host must not use the device itself. Fails on a kernel without IPv6.
        let no_address = link_message(index, 0).nested(IFLA_AF_SPEC, |message| {
            message.nested(libc::AF_INET6 as u16, |message| {
                message.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])
            })
        });
        let _ = socket.request(no_address);
        set_up(socket, index)?;
        let fd = file.into();
        Ok(Self { fd, index })
    }

    /// Redirects the frames that the interface receives to the device, and those that the guest sends to
    /// the interface.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] if the interface has an ingress qdisc. Nothing has changed then.
    pub(crate) fn exchange_frames(&self, socket: &mut Socket, interface: u32) -> io::Result<()> {
        add_ingress(socket, interface)?;
        add_ingress(socket, self.index)?;
        redirect(socket, interface, self.index)?;
        redirect(socket, self.index, interface)
    }
}

/// Returns the beginning of a message about traffic control: with `struct tcmsg`.
fn message(kind: u16, flags: i32, [index, handle, parent, info]: [u32; 4]) -> Message {
    let fixed: [&[u8]; 5] = [
        &[0; 4],
        &index.to_ne_bytes(),
        &handle.to_ne_bytes(),
        &parent.to_ne_bytes(),
        &info.to_ne_bytes(),
    ];
    Message::new(kind, flags, &fixed)
}

const CREATE: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;

fn add_ingress(socket: &mut Socket, index: u32) -> io::Result<()> {
    let fixed = [index, INGRESS_HANDLE, INGRESS_PARENT, 0];
    let message = message(libc::RTM_NEWQDISC, CREATE, fixed);
    socket.request(message.attribute(libc::TCA_KIND, b"ingress\0"))
}

fn remove_ingress(socket: &mut Socket, index: u32) -> io::Result<()> {
    let fixed = [index, INGRESS_HANDLE, INGRESS_PARENT, 0];
    socket.request(message(libc::RTM_DELQDISC, libc::NLM_F_ACK, fixed))
}

/// Sends all frames that one interface receives through another.
fn redirect(socket: &mut Socket, from: u32, to: u32) -> io::Result<()> {
    // `struct tc_mirred`: three fields that the kernel sets are 0.
    let mirred = [
        [0; 8].as_slice(),
        &TC_ACT_STOLEN.to_ne_bytes(),
        &[0; 8],
        &TCA_EGRESS_REDIR.to_ne_bytes(),
        &to.to_ne_bytes(),
    ]
    .concat();
    let action = |message: Message| {
        message
            .attribute(TCA_ACT_KIND, b"mirred\0")
            .nested(TCA_ACT_OPTIONS, |message| {
                message.attribute(TCA_MIRRED_PARMS, &mirred)
            })
    };
    let options = |message: Message| {
        message
            .attribute(TCA_U32_SEL, &MATCH_ALL)
            .nested(TCA_U32_ACT, |message| message.nested(1, action))
    };
    let message = message(
        libc::RTM_NEWTFILTER,
        CREATE,
        [from, 0, INGRESS_HANDLE, FILTER_INFO],
    )
    .attribute(libc::TCA_KIND, b"u32\0")
    .nested(libc::TCA_OPTIONS, options);
    socket.request(message)
}

/// Removes the redirection of an interface to a device that does not exist any more. Leaves what other
/// programs have added, and the redirection to a device that exists.
pub(crate) fn remove_dead(socket: &mut Socket, index: u32) -> io::Result<()> {
    let fixed = [index, 0, INGRESS_HANDLE, 0];
    let filters = socket.dump(&message(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, fixed))?;
    if filters.iter().any(|filter| is_dead(filter, index)) {
        remove_ingress(socket, index)?;
    }
    Ok(())
}

/// Returns whether this crate has added the filter, and its target is gone.
fn is_dead(filter: &[u8], index: u32) -> bool {
    let target = || {
        let options = Attributes(filter.get(20..)?).find(libc::TCA_OPTIONS)?;
        let actions = Attributes(options).find(TCA_U32_ACT)?;
        let options = Attributes(Attributes(actions).find(1)?).find(TCA_ACT_OPTIONS)?;
        let mirred = Attributes(options).find(TCA_MIRRED_PARMS)?;
        read_u32(mirred, MIRRED_IFINDEX)
    };
    read_u32(filter, 4) == Some(index)
        && read_u32(filter, 16) == Some(FILTER_INFO)
        && target() == Some(0)
}
