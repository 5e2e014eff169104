//! Reads interfaces with their addresses, routes and neighbours.

use std::io;
use std::net::IpAddr;

use vmm_protocol::network::{Address, Interface, MacAddress, Neighbour, Route};

use crate::message::{Attributes, Message, read_u16, read_u32};
use crate::socket::Socket;

const RTM_F_CLONED: u32 = 0x200;
pub(crate) const RTNH_F_ONLINK: u32 = 4;

/// An interface of a namespace.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) is_up: bool,
    pub(crate) is_loopback: bool,
    /// Whether frames of Ethernet pass the interface.
    pub(crate) is_ethernet: bool,
    /// Without addresses, routes and neighbours.
    pub(crate) interface: Interface,
}

/// Returns all interfaces, in the order of their indices.
pub(crate) fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let request = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[&[0; 16]]);
    let bodies = socket.dump(&request)?;
    let mut links: Vec<_> = bodies.iter().filter_map(|body| parse_link(body)).collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// Adds the addresses, routes and neighbours of an interface.
pub(crate) fn complete(socket: &mut Socket, link: &Link) -> io::Result<Interface> {
    let mut interface = link.interface.clone();
    let index = link.index;
    let request = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[&[0; 8]]);
    let bodies = socket.dump(&request)?;
    interface.addresses = bodies
        .iter()
        .filter_map(|body| parse_address(body, index))
        .collect();
    let request = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &[&[0; 12]]);
    let bodies = socket.dump(&request)?;
    interface.routes = bodies
        .iter()
        .filter_map(|body| parse_route(body, index))
        .collect();
    let request = Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &[&[0; 12]]);
    let bodies = socket.dump(&request)?;
    interface.neighbours = bodies
        .iter()
        .filter_map(|body| parse_neighbour(body, index))
        .collect();
    Ok(interface)
}

/// Parses `struct ifinfomsg` and its attributes.
fn parse_link(body: &[u8]) -> Option<Link> {
    let flags = read_u32(body, 8)?;
    let has = |flag: i32| flags & flag as u32 != 0;
    let attributes = Attributes(body.get(16..)?);
    let name = attributes.find(libc::IFLA_IFNAME)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    let mac = attributes.find(libc::IFLA_ADDRESS).and_then(parse_mac);
    Some(Link {
        index: read_u32(body, 4)?,
        is_up: has(libc::IFF_UP),
        is_loopback: has(libc::IFF_LOOPBACK),
        is_ethernet: read_u16(body, 2)? == libc::ARPHRD_ETHER,
        interface: Interface {
            name: String::from_utf8_lossy(name).into_owned(),
            mac: mac.unwrap_or_default(),
            mtu: read_u32(attributes.find(libc::IFLA_MTU)?, 0)?,
            ..Interface::default()
        },
    })
}

/// Parses `struct ifaddrmsg` and its attributes.
fn parse_address(body: &[u8], index: u32) -> Option<Address> {
    let &[family, prefix_len, _, scope, ..] = body else {
        return None;
    };
    if read_u32(body, 4)? != index || (family == INET6 && scope == libc::RT_SCOPE_LINK) {
        return None;
    }
    let attributes = Attributes(body.get(8..)?);
    // `IFA_ADDRESS` is that of the peer, if there is one.
    let local = attributes.find(libc::IFA_LOCAL);
    let ip = parse_ip(local.or_else(|| attributes.find(libc::IFA_ADDRESS))?)?;
    Some(Address { ip, prefix_len })
}

/// Parses `struct rtmsg` and its attributes.
fn parse_route(body: &[u8], index: u32) -> Option<Route> {
    let &[family, prefix_len, _, _, table, _, _, kind, ..] = body else {
        return None;
    };
    let flags = read_u32(body, 8)?;
    let attributes = Attributes(body.get(12..)?);
    let find_u32 = |kind| attributes.find(kind).and_then(|value| read_u32(value, 0));
    let is_own = table == libc::RT_TABLE_MAIN && find_u32(libc::RTA_OIF) == Some(index);
    if !is_own || kind != libc::RTN_UNICAST || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let ip = match attributes.find(libc::RTA_DST) {
        Some(value) => parse_ip(value)?,
        None => unspecified(family)?,
    };
    // Every kernel has this route itself.
    if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return None;
    }
    let find_ip = |kind| attributes.find(kind).and_then(parse_ip);
    Some(Route {
        destination: Address { ip, prefix_len },
        gateway: find_ip(libc::RTA_GATEWAY),
        source: find_ip(libc::RTA_PREFSRC),
        metric: find_u32(libc::RTA_PRIORITY),
        on_link: flags & RTNH_F_ONLINK != 0,
    })
}

/// Parses `struct ndmsg` and its attributes.
fn parse_neighbour(body: &[u8], index: u32) -> Option<Neighbour> {
    let is_permanent = read_u16(body, 8)? & libc::NUD_PERMANENT != 0;
    if read_u32(body, 4)? != index || !is_permanent {
        return None;
    }
    let attributes = Attributes(body.get(12..)?);
    Some(Neighbour {
        ip: attributes.find(libc::NDA_DST).and_then(parse_ip)?,
        mac: attributes.find(libc::NDA_LLADDR).and_then(parse_mac)?,
    })
}

/// The families of addresses as the kernel has them in messages.
pub(crate) const INET: u8 = libc::AF_INET as u8;
pub(crate) const INET6: u8 = libc::AF_INET6 as u8;

fn unspecified(family: u8) -> Option<IpAddr> {
    match family {
        INET => Some(IpAddr::from([0; 4])),
        INET6 => Some(IpAddr::from([0; 16])),
        _ => None,
    }
}

fn parse_ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
        .ok()
}

fn parse_mac(value: &[u8]) -> Option<MacAddress> {
    value.try_into().ok().map(MacAddress)
}
