//! The network of a guest: what a shim asks of the agent in [`HostMessage::ConfigureNetwork`].
//!
//! [`HostMessage::ConfigureNetwork`]: crate::frames::HostMessage::ConfigureNetwork

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The network of a guest, which its agent configures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct GuestNetwork {
    /// The interfaces beside the loopback interface.
    pub interfaces: Vec<Interface>,
    /// The host name; unchanged by default.
    pub hostname: Option<String>,
    /// How names are resolved; unchanged by default.
    pub dns: Option<Dns>,
}

/// A network interface with all that a guest configures of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The name, such as `eth0`.
    pub name: String,
    /// The hardware address, by which a guest finds the interface.
    pub mac: MacAddress,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// The addresses, without link-local addresses of IPv6, which every kernel assigns itself.
    pub addresses: Vec<Address>,
    /// The routes through the interface.
    pub routes: Vec<Route>,
    /// The permanent entries of its neighbour table.
    pub neighbours: Vec<Neighbour>,
}

/// An address with the length of its network prefix: `10.0.0.2/24` as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The number of bits that all addresses of the network have in common.
    pub prefix_len: u8,
}

/// A route through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The network that it leads to: a prefix of length 0 is the default route.
    pub destination: Address,
    /// The router; without one, the destination is on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The preferred source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The metric: of two routes to one network, the lower one is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// Whether the gateway is on the link, although no address of the interface has it in its network.
    #[serde(default)]
    pub on_link: bool,
}

/// An entry of a neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The address.
    pub ip: IpAddr,
    /// The hardware address that it has.
    pub mac: MacAddress,
}

/// How names are resolved, `resolv.conf(5)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// The name servers.
    pub servers: Vec<IpAddr>,
    /// The domains in which short names are searched.
    pub searches: Vec<String>,
    /// The options, such as `ndots:5`.
    pub options: Vec<String>,
}

impl fmt::Display for Dns {
    /// Formats the text of `/etc/resolv.conf`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.servers {
            writeln!(f, "nameserver {server}")?;
        }
        for (keyword, words) in [("search", &self.searches), ("options", &self.options)] {
            if !words.is_empty() {
                writeln!(f, "{keyword} {}", words.join(" "))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

/// The hardware address of an Ethernet interface: `02:00:00:00:00:01` as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// A text is not a [`MacAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hardware address has six pairs of hexadecimal digits, separated by colons")]
#[non_exhaustive]
pub struct ParseMacAddressError;

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacAddressError;

    fn from_str(text: &str) -> Result<Self, ParseMacAddressError> {
        let parse = |pair: &str| {
            let is_pair = pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
            let digits = is_pair.then_some(pair).ok_or(ParseMacAddressError)?;
            u8::from_str_radix(digits, 16).map_err(|_| ParseMacAddressError)
        };
        let bytes: Vec<u8> = text.split(':').map(parse).collect::<Result<_, _>>()?;
        bytes.try_into().map(Self).map_err(|_| ParseMacAddressError)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = ParseMacAddressError;

    fn try_from(text: String) -> Result<Self, ParseMacAddressError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_survives_its_text_and_others_are_refused() {
        let address = MacAddress([0x02, 0, 0xab, 0, 0, 0xff]);
        assert_eq!(address.to_string(), "02:00:ab:00:00:ff");
        assert_eq!(address.to_string().parse(), Ok(address));
        for text in [
            "",
            "02:00:ab:00:00",
            "02:00:ab:00:00:ff:00",
            "2:00:ab:00:00:ff",
            "02:00:ab:00:00:+f",
        ] {
            assert_eq!(text.parse::<MacAddress>(), Err(ParseMacAddressError));
        }
    }

    #[test]
    fn the_text_of_resolv_conf_has_all_settings() {
        let dns = Dns {
            servers: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            searches: vec!["a.example".into(), "example".into()],
            options: vec!["ndots:5".into()],
        };
        let expected =
            "nameserver 10.0.0.1\nnameserver fd00::1\nsearch a.example example\noptions ndots:5\n";
        assert_eq!(dns.to_string(), expected);
        assert_eq!(Dns::default().to_string(), "");
    }
}
