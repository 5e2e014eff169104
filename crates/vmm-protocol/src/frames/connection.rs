use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, write};

use super::{Frame, FrameError, FrameReader, Message, Strictness};

/// How many bytes of frames may wait to be written before [`Connection::has_room`] returns false.
const MAX_PENDING: usize = 256 << 10;

/// How many bytes are read at once.
const READ_SIZE: usize = 64 << 10;

/// A socket or serial port that carries frames: messages `In` to this end, `Out` to the other one.
///
/// Never blocks: [poll](Self::poll_fd) the descriptor, call [`fill`](Self::fill) when it is readable and
/// [`flush`](Self::flush) when it is writable.
#[derive(Debug)]
pub struct Connection<In, Out> {
    fd: OwnedFd,
    reader: FrameReader,
    pending: Vec<u8>,
    is_hung_up: bool,
    messages: PhantomData<fn(Out) -> In>,
}

impl<In: Message, Out: Message> Connection<In, Out> {
    /// Creates a connection, and makes the descriptor nonblocking.
    ///
    /// # Errors
    ///
    /// The error of `fcntl(2)`.
    pub fn new(fd: OwnedFd, strictness: Strictness) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self {
            fd,
            reader: FrameReader::new(strictness),
            pending: Vec::new(),
            is_hung_up: false,
            messages: PhantomData,
        })
    }

    /// Returns what to poll: for input if the caller [may read](Self::fill) now, and for room if frames wait
    /// to be written.
    pub fn poll_fd(&self, may_read: bool) -> PollFd<'_> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, may_read);
        events.set(PollFlags::OUT, self.has_pending());
        PollFd::new(&self.fd, events)
    }

    /// Asks the kernel whether the other end has closed the connection in both directions. What it has sent before
    /// may still have to be read.
    pub fn is_closed_by_peer(&self) -> bool {
        // A hang-up is always reported.
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Returns whether the other end has closed the connection, and everything that it has sent is
    /// [read](Self::fill).
    pub fn is_hung_up(&self) -> bool {
        self.is_hung_up
    }

    /// Returns whether frames wait to be written.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns whether the other end reads frames as fast as they are sent. Without room, do not
    /// produce more of them.
    pub fn has_room(&self) -> bool {
        self.pending.len() < MAX_PENDING
    }

    /// Reads once what the other end has sent.
    ///
    /// # Errors
    ///
    /// The error of `read(2)`. A hang-up is not an error.
    pub fn fill(&mut self) -> io::Result<()> {
        // Not cleared, which would take longer than to read a short frame.
        let mut buffer = Vec::with_capacity(READ_SIZE);
        match read(&self.fd, spare_capacity(&mut buffer)) {
            Ok(0) | Err(Errno::CONNRESET) => self.is_hung_up = true,
            Ok(_) => self.reader.push(&buffer),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Returns the next frame that has been read completely.
    ///
    /// # Errors
    ///
    /// The errors of [`FrameReader::next_frame`].
    pub fn next_frame(&mut self) -> Result<Option<Frame<In>>, FrameError> {
        self.reader.next_frame()
    }

    /// Returns whether the beginning of a frame has been read, and not its end, after
    /// [`next_frame`](Self::next_frame) has returned `None`.
    pub fn has_partial_frame(&self) -> bool {
        self.reader.has_partial_frame()
    }

    /// Adds a frame to those that wait to be written.
    ///
    /// # Errors
    ///
    /// The errors of [`Frame::encode`].
    pub fn send(&mut self, stream: u32, message: Out) -> Result<(), FrameError> {
        Frame::new(stream, message).encode(&mut self.pending)
    }

    /// Writes as many of the waiting frames as the other end takes. After a hang-up, discards them:
    /// [`fill`](Self::fill) reports it once everything that the other end has sent is read.
    ///
    /// # Errors
    ///
    /// The error of `write(2)`. A hang-up is not an error.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        match write(&self.fd, &self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(Errno::PIPE | Errno::CONNRESET) => self.pending.clear(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl<In, Out> AsFd for Connection<In, Out> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::frames::{HostMessage, PayloadMessage};

    #[test]
    fn what_was_sent_before_a_hang_up_is_read_although_nothing_can_be_written() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let mut connection: Connection<PayloadMessage, HostMessage> =
            Connection::new(here.into(), Strictness::Strict).unwrap();
        assert!(!connection.is_closed_by_peer());
        let pong = Frame::new(0, PayloadMessage::Pong { token: 7 });
        let mut wire = Vec::new();
        pong.encode(&mut wire).unwrap();
        there.write_all(&wire).unwrap();
        drop(there);

        assert!(connection.is_closed_by_peer());
        connection.send(0, HostMessage::Pause).unwrap();
        connection.flush().unwrap();
        assert!(!connection.is_hung_up() && !connection.has_pending());
        connection.fill().unwrap();
        assert_eq!(connection.next_frame().unwrap(), Some(pong));
        connection.fill().unwrap();
        assert!(connection.is_hung_up());
    }
}
