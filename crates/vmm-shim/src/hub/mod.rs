//! Serves clients over the socket `control.sock` in the box directory: they run commands in the box,
//! attach to them, and list them.
//!
//! ```text
//! client ─┐                                 ┌─ execution
//! client ─┼─ control.sock ─ hub ─ payload ──┼─ execution
//! client ─┘                                 └─ execution
//! ```
//!
//! The hub is the source of truth: an execution goes on without a client, and its last output and
//! its ending stay here. The hub starts with the first client.

mod client;
mod engine_requests;
mod execution;
mod launcher;
mod listener;
mod output_buffer;
mod relay;
mod requests;
mod responses;
mod table;
mod transfers;

pub(crate) use launcher::HubLauncher;
pub(crate) use listener::ControlSocket;
use relay::Hub;
pub(crate) use relay::RunningHub;
