use super::body::Message;
use super::header::{HEADER_BYTES, Header};
use super::{Frame, FrameError};

/// What a [`FrameReader`] does with bytes that are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// Returns [`FrameError::Header`]. For sockets, where only a broken peer sends such bytes.
    Strict,
    /// Skips to the next header. For serial ports, which can carry the rest of an earlier frame, or
    /// the output of firmware.
    Resynchronize,
}

/// Splits the bytes of a connection into frames.
///
/// Makes no system calls: the caller reads the bytes. Memory is bounded by what the caller
/// pushes before it takes the frames.
#[derive(Debug)]
pub struct FrameReader {
    strictness: Strictness,
    bytes: Vec<u8>,
    /// The bytes before this index have been consumed.
    start: usize,
    skipped: u64,
}

impl FrameReader {
    /// Creates a reader.
    pub fn new(strictness: Strictness) -> Self {
        Self {
            strictness,
            bytes: Vec::new(),
            start: 0,
            skipped: 0,
        }
    }

    /// Adds bytes that were read from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next frame, or `None` if it is not complete yet.
    ///
    /// # Errors
    ///
    /// [`FrameError::Header`] if the bytes are not a frame; every later call then returns the same
    /// error. [`FrameError::UnknownType`] and [`FrameError::Body`] for a frame that this version
    /// does not know; the next call continues after that frame.
    pub fn next_frame<M: Message>(&mut self) -> Result<Option<Frame<M>>, FrameError> {
        loop {
            let bytes = &self.bytes[self.start..];
            let Some(header_bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            let Some(header) = Header::decode(*header_bytes) else {
                if self.strictness == Strictness::Strict {
                    return Err(FrameError::Header);
                }
                self.start += 1;
                self.skipped += 1;
                continue;
            };
            let end = HEADER_BYTES + header.body_len;
            let Some(body) = bytes.get(HEADER_BYTES..end) else {
                return Ok(None);
            };
            let frame = Frame::decode(header, body);
            self.start += end;
            return frame.map(Some);
        }
    }

    /// Returns whether the beginning of a frame was pushed, and not its end.
    pub fn has_partial_frame(&self) -> bool {
        self.start < self.bytes.len()
    }

    /// Returns how many bytes were skipped because they were not a frame.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}
