use super::FrameError;
use super::body::{JSON, Message};
use super::header::Header;

/// A message and the stream that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame<M> {
    /// The stream; 0 is the connection itself.
    pub stream: u32,
    /// The message.
    pub message: M,
}

impl<M: Message> Frame<M> {
    /// Creates a frame.
    pub fn new(stream: u32, message: M) -> Self {
        Self { stream, message }
    }

    /// Appends the encoded frame to `out`.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLong`] if the body is longer than [`MAX_BODY`](super::MAX_BODY), and
    /// [`FrameError::Body`] if a path is not UTF-8. `out` is then as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        if let Some((kind, data)) = self.message.as_data() {
            return self.append(out, kind, data);
        }
        let body = serde_json::to_vec(&self.message).map_err(FrameError::Body)?;
        self.append(out, JSON, &body)
    }

    fn append(&self, out: &mut Vec<u8>, kind: u8, body: &[u8]) -> Result<(), FrameError> {
        let header = Header {
            kind,
            stream: self.stream,
            body_len: body.len(),
        };
        out.extend_from_slice(&header.encode()?);
        out.extend_from_slice(body);
        Ok(())
    }

    pub(super) fn decode(header: Header, body: &[u8]) -> Result<Self, FrameError> {
        let message = if header.kind == JSON {
            serde_json::from_slice(body).map_err(FrameError::Body)?
        } else {
            M::from_data(header.kind, body.to_vec()).ok_or(FrameError::UnknownType(header.kind))?
        };
        Ok(Self::new(header.stream, message))
    }
}
