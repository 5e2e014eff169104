//! The messages on the WebSocket of an execution.
//!
//! Data is in binary messages: those of the client are input, and those of the server begin with the
//! channel, [`STDOUT`] or [`STDERR`]. The types of this module are the text messages.

use serde::{Deserialize, Serialize};

/// The channel of stdout, and of all output of a command with a terminal.
pub(crate) const STDOUT: u8 = 1;
/// The channel of stderr.
pub(crate) const STDERR: u8 = 2;

/// A text message of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum AttachRequest {
    /// Resizes the terminal of the command.
    Resize { cols: u32, rows: u32 },
    /// Sends a signal to the command.
    Signal { sig: i32 },
    /// Closes the stdin of the command.
    StdinEof,
}

/// A text message of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum AttachEvent {
    /// The command has ended. No message follows.
    Exit { exit_code: i32 },
    /// A request was not carried out. The connection stays open.
    Error { message: String },
}
