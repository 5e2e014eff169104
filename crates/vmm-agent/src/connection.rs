use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};
use vmm_protocol::frames::{
    Frame, FrameError, FrameReader, HostMessage, PayloadMessage, Strictness,
};

/// How many bytes of frames may wait to be written before the server stops to read output.
const MAX_PENDING: usize = 256 << 10;

/// The end of the payload of a connection that carries frames. Never blocks.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    reader: FrameReader,
    pending: Vec<u8>,
    is_hung_up: bool,
}

impl Connection {
    pub(crate) fn new(fd: OwnedFd, strictness: Strictness) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self {
            fd,
            reader: FrameReader::new(strictness),
            pending: Vec::new(),
            is_hung_up: false,
        })
    }

    pub(crate) fn is_hung_up(&self) -> bool {
        self.is_hung_up
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns whether the host reads frames as fast as they are sent.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.len() < MAX_PENDING
    }

    /// Reads once what the host has sent.
    pub(crate) fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 64 << 10];
        match read(&self.fd, &mut buffer) {
            Ok(0) | Err(Errno::ECONNRESET) => self.is_hung_up = true,
            Ok(length) => self.reader.push(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame<HostMessage>>, FrameError> {
        self.reader.next_frame()
    }

    pub(crate) fn send(&mut self, stream: u32, message: PayloadMessage) {
        // Messages of the server contain no path, and its data is shorter than a frame.
        let _ = Frame::new(stream, message).encode(&mut self.pending);
    }

    /// Writes what the host takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        match write(&self.fd, &self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(Errno::EPIPE | Errno::ECONNRESET) => self.is_hung_up = true,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
