use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use rustix::fs::{OFlags, fstatfs};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vmm_protocol::network::Interface;

use crate::NetworkError;
use crate::interfaces::{complete, links};
use crate::loopback::LoopbackListener;
use crate::redirect::{TAP_PREFIX, TapDevice, remove_dead};
use crate::socket::Socket;

const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// A network namespace whose interfaces a guest takes over.
///
/// It stays open, also if its file is removed.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

/// A tap device that has taken over an interface.
#[derive(Debug)]
pub struct Tap {
    /// The device, for the VMM: with `IFF_VNET_HDR`. The device exists until the last copy is closed.
    pub fd: OwnedFd,
    /// The interface, as the guest configures it.
    pub interface: Interface,
}

impl Namespace {
    /// Opens a namespace: a file such as `/run/netns/pod` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Open`], [`NetworkError::NotANamespace`], or [`NetworkError::OfHost`].
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let path_error = |source| NetworkError::Open {
            path: path.to_owned(),
            source,
        };
        // What is not a namespace, such as a FIFO, must not block.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path);
        let file = file.map_err(path_error)?;
        let file_system = fstatfs(&file).map_err(|error| path_error(error.into()))?;
        let path = path.to_owned();
        if file_system.f_type as u64 != libc::NSFS_MAGIC as u64 {
            return Err(NetworkError::NotANamespace { path });
        }
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let of_file = file.metadata().map(identity);
        let own = fs::metadata(OWN_NAMESPACE).map(identity);
        let is_own = of_file.and_then(|of_file| Ok(of_file == own?));
        if is_own.map_err(NetworkError::system("identify the network namespace"))? {
            return Err(NetworkError::OfHost { path });
        }
        Ok(Self { file })
    }

    /// Creates a tap device for each Ethernet interface that is up, and redirects the frames of both to
    /// each other. The interface keeps its configuration, but the namespace receives no more frames.
    ///
    /// # Errors
    ///
    /// [`NetworkError`]. Nothing has changed then.
    pub fn attach(&self) -> Result<Vec<Tap>, NetworkError> {
        let attached = self.enter(|mut socket| attach_all(&mut socket));
        attached.inspect_err(|_| {
            // The first error counts.
            let _ = self.clean_up();
        })
    }

    /// Accepts the connections to the loopback addresses of the namespace, which otherwise do not reach the guest. Needs
    /// Linux 5.9.
    ///
    /// # Errors
    ///
    /// [`NetworkError::System`].
    pub fn listen_on_loopback(&self) -> Result<LoopbackListener, NetworkError> {
        self.enter(|_| {
            let listener = LoopbackListener::bind(self.file.as_fd());
            listener.map_err(NetworkError::system("take over the loopback addresses"))
        })
    }

    /// Removes what is left of [`attach`](Self::attach) after the tap devices are gone. Leaves those of
    /// another guest, and the filters of other programs.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] if an interface cannot be restored.
    pub fn clean_up(&self) -> Result<(), NetworkError> {
        self.enter(|mut socket| {
            let links = links(&mut socket).map_err(NetworkError::system("list the interfaces"))?;
            for link in links {
                let action = "remove the redirection";
                remove_dead(&mut socket, link.index)
                    .map_err(NetworkError::interface(action, &link.interface.name))?;
            }
            Ok(())
        })
    }

    /// Calls the function in the namespace, in a thread that ends with it.
    fn enter<T: Send>(
        &self,
        action: impl FnOnce(Socket) -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let enter = || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.file.as_fd(), kind)
                .map_err(NetworkError::system("enter the network namespace"))?;
            let socket = Socket::open();
            action(socket.map_err(NetworkError::system("open a netlink socket"))?)
        };
        thread::scope(|scope| {
            let spawned = thread::Builder::new().spawn_scoped(scope, enter);
            let thread = spawned.map_err(NetworkError::system("start a thread"))?;
            thread.join().unwrap_or_else(|_| {
                let error = io::Error::other("the thread panicked");
                Err(NetworkError::system("change the network namespace")(error))
            })
        })
    }
}

fn attach_all(socket: &mut Socket) -> Result<Vec<Tap>, NetworkError> {
    let links = links(socket).map_err(NetworkError::system("list the interfaces"))?;
    let links = links.iter().filter(|link| {
        let is_tap = link.interface.name.starts_with(TAP_PREFIX);
        link.is_up && link.is_ethernet && !is_tap
    });
    let attach = |link| {
        let interface = complete(socket, link).map_err(NetworkError::system(
            "read the configuration of an interface",
        ))?;
        let name = interface.name.clone();
        let device = TapDevice::create(socket, interface.mtu)
            .map_err(NetworkError::system("create a tap device"))?;
        device
            .exchange_frames(socket, link.index)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => NetworkError::InUse { interface: name },
                _ => NetworkError::interface("redirect the frames", &name)(error),
            })?;
        Ok(Tap {
            fd: device.fd,
            interface,
        })
    };
    links.map(attach).collect()
}
