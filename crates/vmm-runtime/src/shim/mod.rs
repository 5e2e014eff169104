//! The runtime's side of a shim: how it is spawned, signalled and observed.
//!
//! Use it to run shims without boxes, with a reaper and directories of your own; [`ShimController`]
//! is the entry point. To run boxes, use [`VmmRuntime`](crate::VmmRuntime), which does not need any
//! of this.

mod controller;
mod disk_threads;
mod ending;
mod error;
mod handler;
mod process;
mod program;
mod spawned;
pub(crate) mod terminate;
mod warm;

pub use controller::ShimController;
pub(crate) use ending::{describe_ending, ending_of_status, record_matches};
pub use error::{LastOutput, ShimProgramError, StartError};
pub use handler::ShimHandler;
pub use program::ShimProgram;
pub use spawned::SpawnedShim;
pub(crate) use warm::WarmShims;
