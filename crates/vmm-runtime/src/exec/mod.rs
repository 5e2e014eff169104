//! Commands that run beside the payload of a box, and other requests to its shim.
//!
//! ```text
//! Execution ─ requests ─► task ─ frames ─► control.sock of the shim
//!     ▲                    │
//!     └─ stdout, stderr ◄──┘
//! ```

mod connection;
mod error;
mod execution;
mod files;
mod requests;
mod streams;
mod task;
mod transfer;

pub use error::ExecError;
pub use execution::{ExecOutput, Execution};
pub(crate) use execution::{
    attach, call, exec, guest_stats, list, remove, send, set_paused, start,
};
pub use streams::{ExecutionInput, ExecutionOutput};
pub use transfer::FileArchive;
pub(crate) use transfer::{receive_archive, send_archive, start_transfer};
