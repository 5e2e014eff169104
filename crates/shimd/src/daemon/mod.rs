//! The daemon: a VMM runtime, the HTTP server over it, and the connection to the service manager.

mod log_format;
mod serve;
mod service_manager;
mod shim_program;
mod signals;

pub(crate) use serve::Serve;
pub(crate) use shim_program::shim;
