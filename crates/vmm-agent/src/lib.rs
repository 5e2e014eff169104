//! Runs commands beside the payload of a box, for the host at the other end of a connection.
//!
//! The [`Server`] speaks the control frames of `vmm-protocol`. It runs in two places: in the shim of
//! a box with the engine `process`, and in the agent that is pid 1 of a guest.
//!
//! Use this crate to write an engine whose payload can run further commands. To run commands in a
//! box, use `vmm-runtime`.

#![forbid(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("vmm-agent needs Linux");

mod backend;
mod children;
mod execution;
mod server;
mod terminal;

pub use backend::Backend;
pub use children::Children;
pub use server::Server;

use vmm_protocol::frames::{Connection, HostMessage, PayloadMessage};

/// The end of the payload of a connection.
type HostConnection = Connection<HostMessage, PayloadMessage>;

/// Sends a message of the server. It can be encoded: it contains no path, and its data is shorter
/// than a frame.
fn send(connection: &mut HostConnection, stream: u32, message: PayloadMessage) {
    let _ = connection.send(stream, message);
}
