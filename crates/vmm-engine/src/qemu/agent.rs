//! Waits for the agent of a guest.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_protocol::frames::{Connection, HostMessage, PayloadMessage, Strictness, VERSION};

use crate::EngineError;

/// Waits until the agent at the other end of the port has sent that it is ready.
pub(super) fn wait_ready(port: &UnixStream) -> Result<(), EngineError> {
    let system_error = || EngineError::system("wait for the agent of the guest");
    let port = port.try_clone().map_err(system_error())?;
    let mut connection: Connection<PayloadMessage, HostMessage> =
        Connection::new(port.into(), Strictness::Resynchronize).map_err(system_error())?;
    connection
        .send(0, HostMessage::Hello { version: VERSION })
        .map_err(|error| system_error()(io::Error::other(error)))?;
    loop {
        connection.flush().map_err(system_error())?;
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, connection.has_pending());
        match poll(
            &mut [PollFd::new(connection.as_fd(), events)],
            PollTimeout::NONE,
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(system_error()(error.into())),
        }
        connection.fill().map_err(system_error())?;
        loop {
            match connection.next_frame() {
                Ok(Some(frame)) => match frame.message {
                    PayloadMessage::Ready { version, .. } if version == VERSION => return Ok(()),
                    PayloadMessage::Ready { version, .. } => {
                        return Err(EngineError::Other(format!(
                            "the agent of the guest speaks version {version} of the frames, and \
                             this shim version {VERSION}; build the image again"
                        )));
                    }
                    _ => {}
                },
                Ok(None) => break,
                // A frame of another version. The next one follows.
                Err(_) => {}
            }
        }
        if connection.is_hung_up() {
            return Err(EngineError::EndedEarly);
        }
    }
}
