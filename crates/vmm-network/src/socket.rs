use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::message::{HEADER_LEN, Message, aligned, read_u16, read_u32};

/// How much a kernel sends at most at once: `NLMSG_GOODSIZE` of a dump.
const BUFFER_LEN: usize = 32 << 10;

/// How often a dump is repeated because the configuration has changed meanwhile.
const MAX_DUMPS: usize = 32;

/// A connection to the network configuration of the namespace of the thread that opens it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// What the kernel has sent as the response to a request.
struct Response {
    /// The messages after their headers.
    bodies: Vec<Vec<u8>>,
    /// Whether the configuration has changed meanwhile, so that something can be missing.
    is_inconsistent: bool,
}

impl Socket {
    pub(crate) fn open() -> io::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // The protocol `NETLINK_ROUTE` has the number 0.
        let fd = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Returns the index of an interface.
    pub(crate) fn index_of(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.fd, name)?)
    }

    /// Sends a request with `NLM_F_ACK`, and waits until the kernel has carried it out.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message).map(drop)
    }

    /// Sends a request with `NLM_F_DUMP`. Returns the messages of the response, without their headers.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if other programs change the configuration during each of [`MAX_DUMPS`] attempts.
    pub(crate) fn dump(&mut self, message: &Message) -> io::Result<Vec<Vec<u8>>> {
        consistent(|| self.exchange(message.clone()))
    }

    fn exchange(&mut self, message: Message) -> io::Result<Response> {
        self.sequence += 1;
        rustix::net::send(&self.fd, &message.finish(self.sequence), SendFlags::empty())?;
        let mut response = Response {
            bodies: Vec::new(),
            is_inconsistent: false,
        };
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            let (_, len) = rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
            if response.add(buffer.get(..len).unwrap_or(&buffer), self.sequence)? {
                return Ok(response);
            }
        }
    }
}

/// Repeats a dump until its response is consistent.
fn consistent(mut dump: impl FnMut() -> io::Result<Response>) -> io::Result<Vec<Vec<u8>>> {
    for _ in 0..MAX_DUMPS {
        let response = dump()?;
        if !response.is_inconsistent {
            return Ok(response.bodies);
        }
    }
    let message = "the network configuration changes all the time";
    Err(io::Error::new(io::ErrorKind::WouldBlock, message))
}

impl Response {
    /// Adds messages. Returns true after the last one.
    fn add(&mut self, mut bytes: &[u8], sequence: u32) -> io::Result<bool> {
        while let (Some(len), Some(kind), Some(flags)) =
            (read_u32(bytes, 0), read_u16(bytes, 4), read_u16(bytes, 6))
        {
            let len = len as usize;
            let body = bytes
                .get(HEADER_LEN..len)
                .ok_or(io::ErrorKind::InvalidData)?;
            self.is_inconsistent |= i32::from(flags) & libc::NLM_F_DUMP_INTR != 0;
            if read_u32(bytes, 8) == Some(sequence) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(true),
                    libc::NLMSG_ERROR => return error(body).map_or(Ok(true), Err),
                    _ => self.bodies.push(body.to_vec()),
                }
            }
            bytes = bytes.get(aligned(len)..).unwrap_or_default();
        }
        Ok(false)
    }
}

/// Returns the error of a message of the type `NLMSG_ERROR`; `None` for a success.
fn error(body: &[u8]) -> Option<io::Error> {
    let number = read_u32(body, 0).map_or(libc::EBADMSG, |number| -(number as i32));
    (number != 0).then(|| io::Error::from_raw_os_error(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_repeated_while_the_configuration_changes_but_not_for_ever() {
        let response = |is_inconsistent| Response {
            bodies: vec![vec![1]],
            is_inconsistent,
        };
        let mut dumps = 0;
        let bodies = consistent(|| {
            dumps += 1;
            Ok(response(dumps < 3))
        });
        assert_eq!((bodies.unwrap(), dumps), (vec![vec![1]], 3));
        let error = consistent(|| Ok(response(true))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
