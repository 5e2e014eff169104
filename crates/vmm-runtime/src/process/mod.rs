//! Processes as such: looked up in `/proc`, followed, and cleared away.

mod caretaker;
mod litter;
mod monitor;
pub(crate) mod procfs;
mod search;
mod strays;

pub(crate) use caretaker::{caretaker, keep_collecting};
pub(crate) use litter::Litter;
pub use monitor::{ProcessExit, ProcessMonitor};
pub(crate) use strays::Strays;
