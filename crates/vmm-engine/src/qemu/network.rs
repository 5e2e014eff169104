//! The network of a guest: options, and the tap devices that connect it to a namespace.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmm_network::{Namespace, NetworkError};
use vmm_protocol::network::{Dns, GuestNetwork, MacAddress};
use vmm_protocol::{PayloadSpec, with_causes};

use crate::EngineError;

/// The network of a guest: a network namespace whose interfaces the guest takes over.
///
/// For each Ethernet interface of the namespace that is up, the guest has an interface with the same name,
/// hardware address, MTU, addresses, routes and permanent neighbours. All frames that arrive at the interface
/// reach the guest, and those of the guest leave through it. The interface keeps its configuration, but
/// processes in the namespace cannot use it meanwhile.
///
/// The operator of the host must [permit](vmm_protocol::HostPolicy::allow_network) it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Network {
    /// The namespace: a file such as `/run/netns/NAME` or `/proc/PID/ns/net`. It must not be that of the
    /// shim, and no other guest can use it at the same time.
    pub namespace: PathBuf,
    /// The host name of the guest, which is also added to its `/etc/hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What the agent writes to `/etc/resolv.conf`; nothing by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// The maximum number of interfaces of a guest.
pub(super) const MAX_INTERFACES: usize = 16;

/// The longest host name of Linux.
const MAX_HOSTNAME_BYTES: usize = 64;

impl Network {
    /// Creates the network of a guest in this namespace.
    pub fn new(namespace: impl Into<PathBuf>) -> Self {
        Self {
            namespace: namespace.into(),
            hostname: None,
            dns: None,
        }
    }

    /// Returns the namespace of the guest of a payload. Another version may have checked the other options.
    pub(super) fn namespace_of(payload: &PayloadSpec) -> Option<&Path> {
        let network = payload.options.get("network")?;
        network.get("namespace")?.as_str().map(Path::new)
    }

    /// Checks the network of a guest, which has an agent or not.
    pub(super) fn check(&self, has_agent: bool) -> Result<(), String> {
        if !has_agent {
            return Err("network: the agent configures it; set `agent`".to_owned());
        }
        let path = &self.namespace;
        if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err("network: the namespace must be absolute, without NUL bytes".to_owned());
        }
        if let Some(name) = &self.hostname {
            let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
            if !(1..=MAX_HOSTNAME_BYTES).contains(&name.len()) || !name.bytes().all(is_valid) {
                return Err(format!(
                    "network: the host name {name:?} must have 1 to {MAX_HOSTNAME_BYTES} letters, digits, `-` \
                     and `.`"
                ));
            }
        }
        let dns = self.dns.iter();
        let mut words = dns.flat_map(|dns| dns.searches.iter().chain(&dns.options));
        let is_special = |c: char| c.is_whitespace() || c.is_control();
        match words.find(|word| word.is_empty() || word.contains(is_special)) {
            Some(word) => Err(format!(
                "network: {word:?} in `dns` must be a word without white space"
            )),
            None => Ok(()),
        }
    }
}

/// A guest in a namespace. When it is dropped, the namespace is as before.
#[derive(Debug)]
pub(super) struct Attachment(Namespace);

/// What a guest gets of its namespace.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// The tap devices for QEMU.
    pub(super) fds: Vec<OwnedFd>,
    /// The hardware addresses of their interfaces.
    pub(super) macs: Vec<MacAddress>,
}

/// Connects a guest to its namespace, if it has one. The attachment has to live longer than the tap devices.
pub(super) fn attach(
    network: Option<&Network>,
) -> Result<(Option<Attachment>, Taps, Option<GuestNetwork>), EngineError> {
    let Some(network) = network else {
        return Ok((None, Taps::default(), None));
    };
    let namespace = Namespace::open(&network.namespace)?;
    let taps = namespace.attach()?;
    let attachment = Attachment(namespace);
    let count = taps.len();
    if count > MAX_INTERFACES {
        let message =
            format!("the namespace has {count} interfaces; a guest has at most {MAX_INTERFACES}");
        // The tap devices first.
        drop(taps);
        return Err(EngineError::Spec(message));
    }
    let mut for_qemu = Taps::default();
    let mut for_agent = GuestNetwork::default();
    for tap in taps {
        for_qemu.fds.push(tap.fd);
        for_qemu.macs.push(tap.interface.mac);
        for_agent.interfaces.push(tap.interface);
    }
    for_agent.hostname.clone_from(&network.hostname);
    for_agent.dns.clone_from(&network.dns);
    Ok((Some(attachment), for_qemu, Some(for_agent)))
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(error) = self.0.clean_up() {
            let _ = writeln!(io::stderr(), "vmm-shim: {}", with_causes(&error));
        }
    }
}

/// Restores the namespace of a guest whose shim was killed. No process of the run is left.
pub(super) fn clean_up(namespace: &Path) -> Result<(), EngineError> {
    match Namespace::open(namespace) {
        Ok(namespace) => Ok(namespace.clean_up()?),
        // It was removed, with its interfaces.
        Err(NetworkError::NotANamespace { .. } | NetworkError::OfHost { .. }) => Ok(()),
        Err(NetworkError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_network_is_refused_with_the_field() {
        let valid = Network::new("/run/netns/pod");
        valid.check(true).unwrap();
        assert!(valid.check(false).unwrap_err().contains("agent"));
        let relative = Network::new("pod").check(true).unwrap_err();
        assert!(relative.contains("namespace"), "{relative}");
        for name in ["", "a b", "a\nb", &"a".repeat(65)] {
            let mut network = valid.clone();
            network.hostname = Some(name.to_owned());
            let error = network.check(true).unwrap_err();
            assert!(error.contains("host name"), "{error}");
        }
        let mut network = valid;
        network.dns = Some(Dns {
            searches: vec!["example\nnameserver 192.0.2.1".to_owned()],
            ..Dns::default()
        });
        let error = network.check(true).unwrap_err();
        assert!(error.contains("dns"), "{error}");
    }

    #[test]
    fn the_namespace_of_a_payload_with_options_of_another_version_is_found() {
        let mut options = crate::QemuOptions::new("/vmlinuz");
        options.network = Some(Network::new("/run/netns/pod"));
        options.agent = true;
        let mut payload = options.to_payload();
        payload.options.insert("renamed".to_owned(), true.into());
        crate::QemuOptions::of(&payload).unwrap_err();
        let namespace = Network::namespace_of(&payload);
        assert_eq!(namespace, Some(Path::new("/run/netns/pod")));
        payload.options.remove("network");
        assert_eq!(Network::namespace_of(&payload), None);
    }

    #[test]
    fn a_namespace_that_was_removed_needs_no_cleanup() {
        let dir = tempfile::tempdir().unwrap();
        clean_up(&dir.path().join("removed")).unwrap();
        // `ip netns delete` removes the file after the namespace.
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        clean_up(&file).unwrap();
    }
}
