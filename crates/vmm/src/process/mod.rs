//! Processes as such: looked up in `/proc`, followed, and cleared away.

mod caretaker;
mod monitor;
pub(crate) mod procfs;
mod strays;

pub(crate) use caretaker::{caretaker, keep_collecting};
pub use monitor::{ProcessExit, ProcessMonitor};
pub(crate) use strays::{Litter, Strays};
