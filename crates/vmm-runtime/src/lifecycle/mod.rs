//! The operations on boxes: create, start, supervise, stop, remove, recover, and shut down.

mod create;
mod pause;
mod recover;
mod remove;
mod shut_down;
mod start;
mod stop;
mod supervise;

pub(crate) use create::create;
pub(crate) use pause::{pause, resume};
pub(crate) use recover::recover;
pub use remove::Removal;
pub(crate) use remove::remove;
pub use shut_down::RuntimeShutdown;
pub(crate) use shut_down::shut_down;
pub(crate) use start::start;
pub(crate) use stop::stop;
use supervise::retry_cleanup;
pub(crate) use supervise::{cleanup, finish_run, observe_exit, supervise};
