//! The server of `vmm-rest` over a VMM runtime with real shims: one module per behaviour.

#[path = "../common/mod.rs"]
mod common;

mod authentication;
mod box_lifecycle;
mod connection_limits;
mod descriptor_exhaustion;
mod events;
mod executions;
mod fixture;
mod idempotency;
mod images;
mod invalid_requests;
mod logs;
mod metrics;
mod paging;
mod readiness;
mod restarts;
mod server_shutdown;
mod sockets;
