//! Processes as such: looked up in `/proc`, followed, and cleared away.

mod leftovers;
mod monitor;
pub(crate) mod procfs;
mod strays;

pub(crate) use leftovers::keep_collecting;
pub use monitor::{ProcessExit, ProcessMonitor};
pub(crate) use strays::Strays;
