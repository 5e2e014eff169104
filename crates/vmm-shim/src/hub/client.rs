use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFd;
use vmm_protocol::frames::{
    Connection, Frame, FrameError, HostMessage, PayloadMessage, RequestError, RequestErrorKind,
    Strictness, VERSION,
};

/// A client of the shim.
#[derive(Debug)]
pub(super) struct Client {
    connection: Connection<HostMessage, PayloadMessage>,
    /// The version of the frames that the client speaks.
    pub(super) version: u32,
    /// Whether frames may have been read that are not handled.
    has_unhandled: bool,
    /// The next frame, if it was returned and cannot be handled yet.
    postponed: Option<Frame<HostMessage>>,
    /// Until when the client has to send the rest of a frame, or its first frame.
    frame_deadline: Option<Instant>,
    /// The executions of its open streams.
    streams: BTreeMap<u32, String>,
}

/// How long a client may take to send its first frame, or the rest of a frame.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// How many streams of a client are open at once. Each of its executions has one.
const MAX_STREAMS: usize = 1024;

/// The error if the client has as many open streams.
pub(super) const TOO_MANY_STREAMS: &str =
    "too many streams of the connection are open; use another connection";

impl Client {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            connection: Connection::new(fd, Strictness::Strict)?,
            version: VERSION,
            has_unhandled: false,
            postponed: None,
            frame_deadline: Some(Instant::now() + FRAME_TIMEOUT),
            streams: BTreeMap::new(),
        })
    }

    pub(super) fn has_room(&self) -> bool {
        self.connection.has_room()
    }

    /// Returns whether there is something to poll: the client can send more, or has to receive something.
    pub(super) fn is_open(&self) -> bool {
        !self.connection.is_hung_up() || self.connection.has_pending()
    }

    /// Returns whether the client has closed its connection. Some of its frames may still have to be handled.
    pub(super) fn has_left(&self) -> bool {
        self.connection.is_closed_by_peer()
    }

    pub(super) fn poll_fd(&self, may_read: bool) -> PollFd<'_> {
        self.connection.poll_fd(may_read)
    }

    pub(super) fn has_pending(&self) -> bool {
        self.connection.has_pending()
    }

    /// Returns whether frames that were read wait until the client has room for the responses.
    pub(super) fn has_unhandled(&self) -> bool {
        self.has_unhandled
    }

    /// Returns whether the hub can take more frames of the client now.
    pub(super) fn accepts_frames(&self) -> bool {
        self.has_room() && !self.has_unhandled
    }

    /// Returns until when the client has to send the rest of a frame, or its first frame. Between two frames, it
    /// may wait as long as it likes.
    pub(super) fn frame_deadline(&self) -> Option<Instant> {
        self.frame_deadline
    }

    pub(super) fn fill(&mut self) -> io::Result<()> {
        self.has_unhandled = true;
        self.connection.fill()
    }

    pub(super) fn next_frame(&mut self) -> Result<Option<Frame<HostMessage>>, FrameError> {
        if let Some(frame) = self.postponed.take() {
            return Ok(Some(frame));
        }
        let frame = self.connection.next_frame();
        self.has_unhandled = !matches!(frame, Ok(None));
        if self.has_unhandled {
            self.frame_deadline = None;
        } else if self.connection.has_partial_frame() {
            self.frame_deadline
                .get_or_insert_with(|| Instant::now() + FRAME_TIMEOUT);
        }
        frame
    }

    /// Returns the next frame, if it was [postponed](Self::postpone).
    pub(super) fn postponed(&self) -> Option<&Frame<HostMessage>> {
        self.postponed.as_ref()
    }

    /// Makes this the next frame again.
    pub(super) fn postpone(&mut self, frame: Frame<HostMessage>) {
        self.postponed = Some(frame);
    }

    /// Returns the execution of an open stream.
    pub(super) fn execution_of(&self, stream: u32) -> Option<&String> {
        self.streams.get(&stream)
    }

    /// Opens a stream for an execution. Returns false if too many are open.
    pub(super) fn open_stream(&mut self, stream: u32, execution: String) -> bool {
        let has_room = self.streams.len() < MAX_STREAMS || self.streams.contains_key(&stream);
        if has_room {
            self.streams.insert(stream, execution);
        }
        has_room
    }

    pub(super) fn close_stream(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    /// Returns the open streams of an execution.
    pub(super) fn streams_of(&self, execution: &str) -> Vec<u32> {
        let streams = self.streams.iter().filter(|(_, of)| *of == execution);
        streams.map(|(stream, _)| *stream).collect()
    }

    /// Writes what the client takes. Returns false once the client has left, and its frames are handled, or
    /// cannot be because it does not read the responses.
    pub(super) fn flush(&mut self) -> bool {
        let can_handle = |client: &Self| client.has_unhandled && client.has_room();
        self.connection.flush().is_ok() && (!self.connection.is_hung_up() || can_handle(self))
    }

    /// Sends a message, or an error if the message is longer than a frame.
    pub(super) fn send(&mut self, stream: u32, message: PayloadMessage) {
        if let Err(error) = self.connection.send(stream, message) {
            let error = RequestError::new(RequestErrorKind::Failed, error.to_string());
            let _ = self.connection.send(stream, PayloadMessage::Error(error));
        }
    }

    pub(super) fn send_error(
        &mut self,
        stream: u32,
        kind: RequestErrorKind,
        message: impl Into<String>,
    ) {
        self.send(
            stream,
            PayloadMessage::Error(RequestError::new(kind, message)),
        );
    }
}
