use super::{FrameError, MAX_BODY};

/// The length of a header, in bytes.
pub(super) const HEADER_BYTES: usize = 12;

const MAGIC: [u8; 2] = *b"VM";

/// What precedes the body of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) stream: u32,
    pub(super) body_len: usize,
}

impl Header {
    /// Encodes the header of a body with at most [`MAX_BODY`] bytes.
    pub(super) fn encode(self) -> Result<[u8; HEADER_BYTES], FrameError> {
        let body_len = u32::try_from(self.body_len)
            .ok()
            .filter(|_| self.body_len <= MAX_BODY)
            .ok_or(FrameError::TooLong(self.body_len))?;
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = self.kind;
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8..].copy_from_slice(&body_len.to_le_bytes());
        bytes[3] = sum(&bytes).wrapping_neg();
        Ok(bytes)
    }

    /// Decodes a header. Returns `None` if these bytes are not one.
    pub(super) fn decode(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [m0, m1, kind, _, s0, s1, s2, s3, l0, l1, l2, l3] = bytes;
        let body_len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).ok()?;
        let is_header = [m0, m1] == MAGIC && sum(&bytes) == 0 && body_len <= MAX_BODY;
        is_header.then_some(Self {
            kind,
            stream: u32::from_le_bytes([s0, s1, s2, s3]),
            body_len,
        })
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}
