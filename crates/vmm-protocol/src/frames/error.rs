use super::MAX_BODY;

/// A frame that cannot be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes are not a header. The ends are out of step; close the connection.
    #[error("the connection carries bytes that are not a frame; close it and connect again")]
    Header,
    /// The body would be, or is, too long.
    #[error("a frame of {0} bytes is longer than {MAX_BODY} bytes; send it in parts")]
    TooLong(usize),
    /// The type of a frame is unknown, or belongs to the other direction.
    #[error("frame of the unknown type {0}; the other end has another version")]
    UnknownType(u8),
    /// The body is not such a message.
    #[error("the body of a frame is not a message; the other end has another version")]
    Body(#[source] serde_json::Error),
}
