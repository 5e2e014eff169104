//! Control frames: what a VMM runtime, a shim and a guest agent send each other while a payload
//! runs.
//!
//! The runtime connects to the shim through the socket `control.sock` in the box directory, and the
//! shim to a guest agent through a serial port. Both connections carry the same frames: the *host*
//! end sends [`HostMessage`]s, the *payload* end [`PayloadMessage`]s. A frame belongs to a *stream*:
//! stream 0 is the connection itself, and every execution or file transfer has a stream of its own,
//! whose number the host chooses.
//!
//! Use this module to write one of the ends. To run commands in a box, use `vmm-runtime`.
//!
//! # Format
//!
//! A frame is a header of 12 bytes and a body. Numbers are little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 0 to 1 | `0x56 0x4d` |
//! | 2 | the type of the message |
//! | 3 | the checksum of the header: the sum of its bytes is 0 modulo 256 |
//! | 4 to 7 | the stream |
//! | 8 to 11 | the length of the body, at most [`MAX_BODY`] |
//!
//! The body of `Stdin`, `Stdout` and `Stderr` is the data itself, that of every other message is
//! JSON. Versions are exchanged in [`HostMessage::Hello`] and [`PayloadMessage::Ready`].
//!
//! # Flow control
//!
//! Each end may send [`INITIAL_CREDIT`] bytes of data on a stream, and more as the other end grants
//! credit (`Credit`). `Started` has the credit for input, because a shim can still hold input of an
//! earlier client. A reader that does not read stops its own stream, and no other. [`Window`]
//! counts the bytes.
//!
//! ```
//! use vmm_protocol::frames::{Frame, FrameReader, HostMessage, Strictness};
//!
//! let mut wire = Vec::new();
//! Frame::new(7, HostMessage::signal(15)).encode(&mut wire)?;
//!
//! let mut reader = FrameReader::new(Strictness::Strict);
//! reader.push(&wire);
//! let frame: Frame<HostMessage> = reader.next_frame()?.expect("the frame is complete");
//! assert_eq!(frame, Frame::new(7, HostMessage::signal(15)));
//! # Ok::<(), vmm_protocol::frames::FrameError>(())
//! ```

mod body;
mod connection;
mod error;
mod files;
mod frame;
mod header;
mod messages;
mod reader;
mod request_error;
mod stats;
#[cfg(test)]
mod tests;
mod turns;
mod window;

pub use body::Message;
pub use connection::Connection;
pub use error::FrameError;
pub use files::{GetSpec, PutSpec};
pub use frame::Frame;
pub use messages::{BootPhase, ExecSpec, Execution, HostMessage, PayloadMessage, TerminalSize};
pub use reader::{FrameReader, Strictness};
pub use request_error::{RequestError, RequestErrorKind};
pub use stats::GuestStats;
pub use turns::Turns;
pub use window::Window;

/// The version of the frames.
pub const VERSION: u32 = 1;

/// The maximum length of the body of a frame, in bytes.
pub const MAX_BODY: usize = 64 << 10;

/// How many bytes of data each end may send on a new stream before the other end grants credit.
pub const INITIAL_CREDIT: u32 = 256 << 10;
