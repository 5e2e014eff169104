use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmm_agent::{Children, Server};
use vmm_protocol::frames::Strictness;

use crate::backend::GuestBackend;
use crate::boot::wait_for;
use crate::error::AgentError;

/// The name of the serial port to the host.
pub(crate) const PORT_NAME: &str = "org.vmm.agent.0";

const PORT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait before a port is read again while no host is connected: the kernel reports a
/// hang-up then, and has no event for a host that connects.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(50);

/// Opens the serial port to the host, as soon as the kernel has found it.
pub(crate) fn open() -> Result<OwnedFd, AgentError> {
    let path = wait_for(PORT_TIMEOUT, find).ok_or(AgentError::PortNotFound)?;
    let port = OpenOptions::new().read(true).write(true).open(path);
    let port = port.map_err(AgentError::system("open the serial port to the host"))?;
    Ok(port.into())
}

fn find() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let path = Path::new("/dev").join(port.file_name());
        (name.trim_end() == PORT_NAME && path.exists()).then_some(path)
    })
}

/// Starts the thread that serves the host. The receiver gets a message when the thread has sent
/// everything after [`Children::close`]. Without `reconnects`, a hang-up stops the agent.
pub(crate) fn serve(
    port: OwnedFd,
    reconnects: bool,
    backend: GuestBackend,
    children: Arc<Children>,
) -> Result<Receiver<()>, AgentError> {
    let (sender, served) = mpsc::channel();
    let mut server = Server::new(backend, Arc::clone(&children));
    thread::Builder::new()
        .name("agent-server".to_owned())
        .spawn(move || {
            while !children.is_closed() {
                // A second descriptor: the kernel discards what it has received when a port is closed.
                let result = port
                    .try_clone()
                    .and_then(|port| server.serve(port, Strictness::Resynchronize));
                if let Err(error) = result {
                    eprintln!("vmm-agent: lost the connection to the host: {error}");
                }
                if !reconnects {
                    let _ = kill(Pid::this(), Signal::SIGTERM);
                    break;
                }
                thread::sleep(RECONNECT_INTERVAL);
            }
            let _ = sender.send(());
        })
        .map_err(AgentError::system("start the thread of the server"))?;
    Ok(served)
}
