//! A process table in memory, for event orders that a real kernel does not produce on demand.

mod control;
mod epoll;
mod events;
mod kernel;
mod mechanism;
mod process;
mod requests;
mod system_calls;
mod table;
mod waits;

pub(crate) use epoll::Disturbance;
pub(crate) use events::SimulatedEvents;
pub(crate) use kernel::{Descriptor, Interrupts, Simulated};
pub use mechanism::Mechanism;
pub(crate) use process::{Features, Parent, Process, ProcessState, Resistance, WaitBy};
pub(crate) use table::Failure;
