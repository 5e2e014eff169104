use std::fs;
use std::io;
use std::path::Path;

use nix::unistd::sethostname;
use vmm_protocol::frames::{RequestError, RequestErrorKind};
use vmm_protocol::network::GuestNetwork;
use vmm_protocol::with_causes;

/// Configures the interfaces, the host name and the resolution of names.
pub(crate) fn configure(network: &GuestNetwork) -> Result<(), RequestError> {
    let failed = |message: String| RequestError::new(RequestErrorKind::Failed, message);
    vmm_network::configure(&network.interfaces).map_err(|error| failed(with_causes(&error)))?;
    configure_names(network).map_err(|error| failed(format!("cannot configure names: {error}")))
}

fn configure_names(network: &GuestNetwork) -> io::Result<()> {
    if let Some(name) = &network.hostname {
        sethostname(name)?;
        write("hosts", &hosts(network, name))?;
    }
    if let Some(dns) = &network.dns {
        write("resolv.conf", &dns.to_string())?;
    }
    Ok(())
}

/// Returns the text of `/etc/hosts`.
fn hosts(network: &GuestNetwork, hostname: &str) -> String {
    let addresses = network
        .interfaces
        .iter()
        .flat_map(|interface| &interface.addresses);
    let own: String = addresses
        .map(|address| format!("{}\t{hostname}\n", address.ip))
        .collect();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{own}")
}

/// Replaces a file in `/etc`, which can be a symbolic link.
fn write(name: &str, text: &str) -> io::Result<()> {
    let dir = Path::new("/etc");
    fs::create_dir_all(dir)?;
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use vmm_protocol::network::{Address, Interface};

    use super::*;

    #[test]
    fn the_hosts_have_every_address_of_the_guest() {
        let address = |ip: &str| Address {
            ip: ip.parse().unwrap(),
            prefix_len: 24,
        };
        let mut network = GuestNetwork::default();
        network.interfaces = vec![Interface {
            addresses: vec![address("10.0.0.2"), address("fd00::2")],
            ..Interface::default()
        }];
        let expected = "127.0.0.1\tlocalhost\n::1\tlocalhost\n10.0.0.2\tweb\nfd00::2\tweb\n";
        assert_eq!(hosts(&network, "web"), expected);
    }
}
