//! The control groups of a payload, `cgroups(7)`: they limit its CPU time, memory and processes.

mod cgroupfs;
mod controller;
pub(crate) mod find;
mod freezer;
mod group;
pub(crate) mod hierarchy;
mod new_group;
mod usage;
mod walk;

pub use cgroupfs::PROCS_FILE;
pub use controller::Controller;
pub use group::{ControlGroup, Members};
pub use usage::GroupUsage;
