//! A shim as the runtime sees it: how one is started, signalled and followed.

mod controller;
pub(crate) mod end;
mod error;
mod handler;
mod keepalive;
mod program;
mod spawned;

pub use controller::ShimController;
pub use error::{ShimProgramError, StartError};
pub use handler::ShimHandler;
pub use keepalive::Keepalive;
pub use program::ShimProgram;
pub use spawned::SpawnedShim;
