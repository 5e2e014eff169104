//! Boxes over HTTP, with real shims: one module per behaviour.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod bad_input;
mod descriptors;
mod events;
mod fixture;
mod idempotency;
mod images;
mod lifecycle;
mod limits;
mod numbers;
mod paging;
mod probes;
mod shutdown;
mod sockets;
