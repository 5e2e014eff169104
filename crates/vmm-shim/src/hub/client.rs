use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vmm_protocol::frames::{
    Connection, Frame, FrameError, HostMessage, PayloadMessage, RequestErrorKind, Strictness,
};

/// A client of the shim.
#[derive(Debug)]
pub(super) struct Client {
    connection: Connection<HostMessage, PayloadMessage>,
    /// The executions of its open streams.
    pub(super) streams: BTreeMap<u32, String>,
}

impl Client {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::new(fd, Strictness::Strict)?,
            streams: BTreeMap::new(),
        })
    }

    pub(super) fn has_room(&self) -> bool {
        self.connection.has_room()
    }

    pub(super) fn has_pending(&self) -> bool {
        self.connection.has_pending()
    }

    pub(super) fn fill(&mut self) -> io::Result<()> {
        self.connection.fill()
    }

    pub(super) fn next_frame(&mut self) -> Result<Option<Frame<HostMessage>>, FrameError> {
        self.connection.next_frame()
    }

    /// Writes what the client takes. Returns false once the client has gone.
    pub(super) fn flush(&mut self) -> bool {
        self.connection.flush().is_ok() && !self.connection.is_hung_up()
    }

    /// Sends a message, or an error if the message is longer than a frame.
    pub(super) fn send(&mut self, stream: u32, message: PayloadMessage) {
        if let Err(error) = self.connection.send(stream, message) {
            let (kind, message) = (RequestErrorKind::Failed, error.to_string());
            let _ = self
                .connection
                .send(stream, PayloadMessage::Error { kind, message });
        }
    }

    pub(super) fn send_error(&mut self, stream: u32, kind: RequestErrorKind, message: String) {
        self.send(stream, PayloadMessage::Error { kind, message });
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
