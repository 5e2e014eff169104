//! Messages as lines of JSON.

use std::io::{self, BufRead};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The maximum size of a message, except the spec. It protects the reader from a broken writer.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Serializes a message, including the newline at the end.
///
/// # Errors
///
/// If the message contains a path that is not UTF-8.
pub fn to_line(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a message. Returns `None` at the end of the input.
///
/// # Errors
///
/// The error of the read; [`InvalidData`](io::ErrorKind::InvalidData) or
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) for a line that is not such a message.
pub fn read_line<T: DeserializeOwned>(input: impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    io::Read::take(input, MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
