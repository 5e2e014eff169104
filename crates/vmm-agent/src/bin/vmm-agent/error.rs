use std::io;
use std::path::PathBuf;

use crate::port::PORT_NAME;

/// Why the agent cannot serve its guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(
        "vmm-agent runs as /init of the initrd of a guest; use --stdin to serve the host at the other \
         end of stdin"
    )]
    NotGuest,
    #[error("cannot {action}")]
    System {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount {what} on {}", target.display())]
    Mount {
        what: String,
        target: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "serial port {PORT_NAME} not found; start QEMU with `-device virtserialport,name={PORT_NAME}`, \
         and add the modules virtio_pci and virtio_console to the initrd"
    )]
    PortNotFound,
    #[error(
        "root device {} not found; attach the disk, and add the module of its controller to the initrd",
        .0.display()
    )]
    RootNotFound(PathBuf),
}

impl AgentError {
    /// Returns a function that adds what could not be done to an error.
    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}
