use serde::Serialize;
use serde::de::DeserializeOwned;

/// The type of a frame whose body is JSON.
pub(super) const JSON: u8 = 0;
/// The types of frames whose body is data.
pub(super) const STDIN: u8 = 1;
pub(super) const STDOUT: u8 = 2;
pub(super) const STDERR: u8 = 3;

/// A message that a frame can carry: all that one end of a connection sends.
pub trait Message: Serialize + DeserializeOwned {
    /// Returns the type and the body of a message that is data.
    fn as_data(&self) -> Option<(u8, &[u8])>;

    /// Creates a message from data. Returns `None` for a type that this end does not send.
    fn from_data(kind: u8, data: Vec<u8>) -> Option<Self>;
}
