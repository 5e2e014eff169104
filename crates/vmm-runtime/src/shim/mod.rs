//! The runtime's side of a shim: how it is spawned, signalled and observed.

mod controller;
mod error;
mod handler;
mod program;
mod spawned;
pub(crate) mod terminate;

pub use controller::ShimController;
pub use error::{ShimProgramError, StartError};
pub use handler::ShimHandler;
pub use program::ShimProgram;
pub use spawned::{Keepalive, SpawnedShim};
