use std::io;
use std::path::PathBuf;

use vmm_protocol::network::MacAddress;

/// A network that cannot be connected or configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The file of the namespace cannot be opened.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// The path of the file.
        path: PathBuf,
        /// The error that `open(2)` returned.
        source: io::Error,
    },
    /// The file is not that of a network namespace.
    #[error("{} is not a network namespace; name a file such as /run/netns/NAME", path.display())]
    NotANamespace {
        /// The path of the file.
        path: PathBuf,
    },
    /// The namespace is that of this process, whose interfaces a guest must not take over.
    #[error(
        "{} is the network namespace of the host; create one for the guest, for example with `ip netns add`",
        path.display()
    )]
    OfHost {
        /// The path of the file.
        path: PathBuf,
    },
    /// Something handles the packets of an interface already, such as another guest.
    #[error(
        "another program handles the frames of the interface {interface}; use a namespace without other guests, or \
         remove its filters with `tc qdisc del dev {interface} ingress`"
    )]
    InUse {
        /// The name of the interface.
        interface: String,
    },
    /// A guest does not have an interface with this hardware address.
    #[error("no interface has the hardware address {mac}; the guest needs the module virtio_net")]
    InterfaceNotFound {
        /// The address.
        mac: MacAddress,
    },
    /// An interface cannot be changed.
    #[error("cannot {action} of the interface {interface}")]
    Interface {
        /// The operation that failed, as an infinitive.
        action: String,
        /// The name of the interface.
        interface: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// The operation that failed, as an infinitive.
        action: &'static str,
        /// The error that the system call returned.
        source: io::Error,
    },
}

impl NetworkError {
    /// Returns a closure for `map_err` that converts the error of a system call.
    pub(crate) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }

    /// Returns a closure for `map_err` that adds the interface and what cannot be done with it.
    pub(crate) fn interface(
        action: impl Into<String>,
        interface: &str,
    ) -> impl FnOnce(io::Error) -> Self {
        let (action, interface) = (action.into(), interface.to_owned());
        move |source| Self::Interface {
            action,
            interface,
            source,
        }
    }
}
