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

/// The length of `struct tcmsg`.
const TCMSG_LEN: usize = 20;

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
    /// [`io::ErrorKind::AlreadyExists`] if another program handles the frames of the interface. Nothing has
    /// changed then, nor after any other error.
    pub(crate) fn exchange_frames(&self, socket: &mut Socket, interface: u32) -> io::Result<()> {
        take_ingress(socket, interface)?;
        let mut redirect_both = || -> io::Result<()> {
            add_ingress(socket, self.index)?;
            redirect(socket, interface, self.index)?;
            redirect(socket, self.index, interface)
        };
        redirect_both().inspect_err(|_| {
            // The first error counts.
            let _ = remove_to(socket, interface, self.index);
            let _ = remove_unused_ingress(socket, interface);
        })
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

/// Adds the ingress qdisc of an interface, unless it has one without filters: a program has added it and was killed
/// before it used it.
fn take_ingress(socket: &mut Socket, index: u32) -> io::Result<()> {
    match add_ingress(socket, index) {
        Err(error)
            if error.kind() == io::ErrorKind::AlreadyExists
                && has_ingress(socket, index)?
                && filters(socket, index)?.is_empty() =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Returns whether an interface has a qdisc of the kind `ingress`, and not `clsact`, which has the same handle.
fn has_ingress(socket: &mut Socket, index: u32) -> io::Result<bool> {
    let fixed = [index, 0, 0, 0];
    let qdiscs = socket.dump(&message(libc::RTM_GETQDISC, libc::NLM_F_DUMP, fixed))?;
    Ok(qdiscs.iter().any(|qdisc| {
        let kind = || Attributes(qdisc.get(TCMSG_LEN..)?).find(libc::TCA_KIND);
        read_u32(qdisc, 4) == Some(index)
            && read_u32(qdisc, 8) == Some(INGRESS_HANDLE)
            && kind() == Some(b"ingress\0")
    }))
}

/// Removes the ingress qdisc of an interface if it has no filters.
fn remove_unused_ingress(socket: &mut Socket, index: u32) -> io::Result<()> {
    if filters(socket, index)?.is_empty() {
        remove_ingress(socket, index)?;
    }
    Ok(())
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
    // The kernel resets the target when it is removed.
    if remove_to(socket, index, 0)? {
        remove_unused_ingress(socket, index)?;
    }
    Ok(())
}

/// Removes the filters of this crate that redirect the frames of an interface to another one. Returns whether there
/// were any.
fn remove_to(socket: &mut Socket, index: u32, target: u32) -> io::Result<bool> {
    let mut filters = filters(socket, index)?;
    filters.retain(|filter| is_own(filter) && target_of(filter) == Some(target));
    for filter in &filters {
        let handle = read_u32(filter, 8).unwrap_or(0);
        let fixed = [index, handle, INGRESS_HANDLE, FILTER_INFO];
        let message = message(libc::RTM_DELTFILTER, libc::NLM_F_ACK, fixed);
        socket.request(message.attribute(libc::TCA_KIND, b"u32\0"))?;
    }
    Ok(!filters.is_empty())
}

/// Returns the filters of the frames that an interface receives.
fn filters(socket: &mut Socket, index: u32) -> io::Result<Vec<Vec<u8>>> {
    let fixed = [index, 0, INGRESS_HANDLE, 0];
    let mut filters = socket.dump(&message(libc::RTM_GETTFILTER, libc::NLM_F_DUMP, fixed))?;
    filters.retain(|filter| read_u32(filter, 4) == Some(index));
    Ok(filters)
}

/// Returns whether this crate has added the filter.
fn is_own(filter: &[u8]) -> bool {
    read_u32(filter, 16) == Some(FILTER_INFO)
}

/// Returns the interface to which a filter redirects frames.
fn target_of(filter: &[u8]) -> Option<u32> {
    let options = Attributes(filter.get(TCMSG_LEN..)?).find(libc::TCA_OPTIONS)?;
    let actions = Attributes(options).find(TCA_U32_ACT)?;
    let options = Attributes(Attributes(actions).find(1)?).find(TCA_ACT_OPTIONS)?;
    let mirred = Attributes(options).find(TCA_MIRRED_PARMS)?;
    read_u32(mirred, MIRRED_IFINDEX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    use super::*;
    use crate::test_namespace::TestNamespace;

    #[test]
    fn the_qdisc_is_removed_if_frames_cannot_be_redirected() {
        let Some(namespace) = TestNamespace::create() else {
            return;
        };
        let namespace = File::open(namespace.path()).unwrap();
        let thread = std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            let mut socket = Socket::open().unwrap();
            let loopback = socket.index_of("lo").unwrap();
            // No interface has this index.
            let (fd, index) = (File::open("/dev/null").unwrap().into(), 9999);
            let device = TapDevice { fd, index };
            device.exchange_frames(&mut socket, loopback).unwrap_err();
            assert!(!has_ingress(&mut socket, loopback).unwrap());
            // A qdisc without filters is what a program leaves that is killed.
            add_ingress(&mut socket, loopback).unwrap();
            take_ingress(&mut socket, loopback).unwrap();
            redirect(&mut socket, loopback, loopback).unwrap();
            let error = take_ingress(&mut socket, loopback).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        });
        thread.join().unwrap();
    }
}
