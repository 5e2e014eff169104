//! Waits for the agent of a guest, and asks it to shut the guest down.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_protocol::frames::{
    BootPhase, Connection, Frame, HostMessage, PayloadMessage, Strictness, VERSION,
};

use crate::EngineError;

/// Waits until the agent at the other end of the port has sent that it is ready. Returns how long
/// the phases of the boot took.
pub(super) fn wait_ready(port: &UnixStream) -> Result<Vec<BootPhase>, EngineError> {
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
                    PayloadMessage::Ready { version, boot } if version == VERSION => {
                        return Ok(boot);
                    }
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

/// Asks the agent to end all processes of the guest, with SIGKILL after `grace`, and to power it off.
///
/// Does not block. The agent does not receive the request if the port is full, or if the shim has
/// written a part of another frame: the stop goes on without it.
pub(super) fn request_shutdown(port: &UnixStream, grace: Duration) {
    let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let mut frame = Vec::new();
    if Frame::new(0, HostMessage::Shutdown { grace_millis })
        .encode(&mut frame)
        .is_ok()
    {
        // `wait_ready` has made the port nonblocking.
        let _ = (&mut &*port).write(&frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what a shim waits for that receives these bytes and then a hang-up.
    fn after(bytes: &[u8]) -> Result<Vec<BootPhase>, EngineError> {
        let (port, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(bytes).unwrap();
        drop(guest);
        wait_ready(&port)
    }

    fn ready(version: u32) -> Vec<u8> {
        let message = PayloadMessage::Ready {
            version,
            boot: Vec::new(),
        };
        let mut wire = b"garbage of a boot loader".to_vec();
        Frame::new(0, message).encode(&mut wire).unwrap();
        wire
    }

    #[test]
    fn an_agent_is_ready_when_it_says_so() {
        after(&ready(VERSION)).unwrap();
    }

    #[test]
    fn a_guest_that_ends_before_its_agent_is_ready_ended_early() {
        let error = after(b"garbage").unwrap_err();
        assert!(matches!(error, EngineError::EndedEarly), "{error}");
    }

    #[test]
    fn an_agent_of_another_version_is_an_error_that_names_both() {
        let error = after(&ready(VERSION + 1)).unwrap_err().to_string();
        let other = format!("version {}", VERSION + 1);
        assert!(
            error.contains(&other) && error.contains("build the image again"),
            "{error}"
        );
    }
}
