//! Configures the interfaces of a guest.

use std::io;
use std::net::IpAddr;

use vmm_protocol::network::{Address, Interface, Neighbour, Route};

use crate::NetworkError;
use crate::interfaces::{INET, INET6, RTNH_F_ONLINK, links};
use crate::message::Message;
use crate::socket::Socket;

const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

/// Creates an object of the kernel, or replaces it.
const SET: i32 = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

/// Sets the loopback interface up.
///
/// # Errors
///
/// [`NetworkError::System`] or [`NetworkError::Interface`].
pub fn bring_up_loopback() -> Result<(), NetworkError> {
    let mut socket = open()?;
    let links = links(&mut socket).map_err(NetworkError::system("list the interfaces"))?;
    for link in links.iter().filter(|link| link.is_loopback) {
        let name = &link.interface.name;
        set_up(&mut socket, link.index)
            .map_err(NetworkError::interface("change the state", name))?;
    }
    Ok(())
}

/// Gives the interfaces of this namespace, which have the same hardware addresses, the names, addresses,
/// routes and neighbours of these. Interfaces that share a hardware address are those of the namespace in the order of
/// their indices.
///
/// # Errors
///
/// [`NetworkError`] for the first interface that cannot be configured.
pub fn configure(interfaces: &[Interface]) -> Result<(), NetworkError> {
    let mut socket = open()?;
    let indices = find_indices(&mut socket, interfaces)?;
    // First names that none has, because two interfaces may swap theirs.
    for index in &indices {
        rename(&mut socket, *index, &format!("renamed{index}"))
            .map_err(NetworkError::system("rename an interface"))?;
    }
    for (index, interface) in indices.iter().zip(interfaces) {
        let name = &interface.name;
        rename(&mut socket, *index, name).map_err(NetworkError::interface("set the name", name))?;
        set_mtu(&mut socket, *index, interface.mtu)
            .map_err(NetworkError::interface("set the MTU", name))?;
        set_up(&mut socket, *index).map_err(NetworkError::interface("change the state", name))?;
        for address in &interface.addresses {
            let action = || format!("add the address {address}");
            add_address(&mut socket, *index, address)
                .map_err(|error| NetworkError::interface(action(), name)(error))?;
        }
    }
    for (index, interface) in indices.iter().zip(interfaces) {
        // The gateway of a route can be on the link because of another route.
        let routes = interface.routes.iter();
        let (through_gateways, on_link): (Vec<&Route>, Vec<_>) =
            routes.partition(|route| route.gateway.is_some());
        for route in on_link.into_iter().chain(through_gateways) {
            let action = || format!("add the route to {}", route.destination);
            add_route(&mut socket, *index, route)
                .map_err(|error| NetworkError::interface(action(), &interface.name)(error))?;
        }
        for neighbour in &interface.neighbours {
            let action = || format!("add the neighbour {}", neighbour.ip);
            add_neighbour(&mut socket, *index, neighbour)
                .map_err(|error| NetworkError::interface(action(), &interface.name)(error))?;
        }
    }
    Ok(())
}

fn open() -> Result<Socket, NetworkError> {
    Socket::open().map_err(NetworkError::system("open a netlink socket"))
}

/// Returns the indices of the interfaces with the same hardware addresses, in their order. Those of ipvlan share one:
/// they are taken in the order of their indices, which is that of the devices of the guest.
fn find_indices(socket: &mut Socket, interfaces: &[Interface]) -> Result<Vec<u32>, NetworkError> {
    let mut links = links(socket).map_err(NetworkError::system("list the interfaces"))?;
    let find = |interface: &Interface| {
        let mac = interface.mac;
        let position = links.iter().position(|link| link.interface.mac == mac);
        let position = position.ok_or(NetworkError::InterfaceNotFound { mac })?;
        Ok(links.remove(position).index)
    };
    interfaces.iter().map(find).collect()
}

/// Returns a message that changes an interface: with `struct ifinfomsg`.
pub(crate) fn link_message(index: u32, flags: u32) -> Message {
    let fixed: [&[u8]; 4] = [
        &[0; 4],
        &index.to_ne_bytes(),
        &flags.to_ne_bytes(),
        &flags.to_ne_bytes(),
    ];
    Message::new(libc::RTM_SETLINK, libc::NLM_F_ACK, &fixed)
}

pub(crate) fn set_up(socket: &mut Socket, index: u32) -> io::Result<()> {
    socket.request(link_message(index, libc::IFF_UP as u32))
}

pub(crate) fn set_mtu(socket: &mut Socket, index: u32, mtu: u32) -> io::Result<()> {
    socket.request(link_message(index, 0).attribute(libc::IFLA_MTU, &mtu.to_ne_bytes()))
}

fn rename(socket: &mut Socket, index: u32, name: &str) -> io::Result<()> {
    let name = [name.as_bytes(), &[0]].concat();
    socket.request(link_message(index, 0).attribute(libc::IFLA_IFNAME, &name))
}

/// Adds an address without the route to its network, which is one of the routes.
fn add_address(socket: &mut Socket, index: u32, address: &Address) -> io::Result<()> {
    let (family, ip) = encode(&address.ip);
    // No other interface of the link has the address, so the kernel need not ask for it.
    let flags = IFA_F_NODAD | IFA_F_NOPREFIXROUTE;
    let fixed: [&[u8]; 2] = [&[family, address.prefix_len, 0, 0], &index.to_ne_bytes()];
    let message = Message::new(libc::RTM_NEWADDR, SET, &fixed)
        .attribute(libc::IFA_LOCAL, &ip)
        .attribute(libc::IFA_ADDRESS, &ip)
        .attribute(IFA_FLAGS, &flags.to_ne_bytes());
    socket.request(message)
}

fn add_route(socket: &mut Socket, index: u32, route: &Route) -> io::Result<()> {
    let Address { ip, prefix_len } = &route.destination;
    let (family, destination) = encode(ip);
    let scope = match (family, route.gateway) {
        (INET, None) => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let flags = if route.on_link { RTNH_F_ONLINK } else { 0 };
    let (table, protocol, kind) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RTN_UNICAST);
    let fixed: [&[u8]; 2] = [
        &[family, *prefix_len, 0, 0, table, protocol, scope, kind],
        &flags.to_ne_bytes(),
    ];
    let mut message = Message::new(libc::RTM_NEWROUTE, SET, &fixed)
        .attribute(libc::RTA_OIF, &index.to_ne_bytes());
    if *prefix_len > 0 {
        message = message.attribute(libc::RTA_DST, &destination);
    }
    if let Some(gateway) = &route.gateway {
        message = message.attribute(libc::RTA_GATEWAY, &encode(gateway).1);
    }
    if let Some(source) = &route.source {
        message = message.attribute(libc::RTA_PREFSRC, &encode(source).1);
    }
    if let Some(metric) = route.metric {
        message = message.attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes());
    }
    socket.request(message)
}

fn add_neighbour(socket: &mut Socket, index: u32, neighbour: &Neighbour) -> io::Result<()> {
    let (family, ip) = encode(&neighbour.ip);
    let fixed: [&[u8]; 4] = [
        &[family, 0, 0, 0],
        &index.to_ne_bytes(),
        &libc::NUD_PERMANENT.to_ne_bytes(),
        &[0; 2],
    ];
    let message = Message::new(libc::RTM_NEWNEIGH, SET, &fixed)
        .attribute(libc::NDA_DST, &ip)
        .attribute(libc::NDA_LLADDR, &neighbour.mac.0);
    socket.request(message)
}

/// Returns the family and the bytes of an address.
fn encode(ip: &IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (INET6, ip.octets().to_vec()),
    }
}
