//! What the kernel keeps a payload to its processors, memory and processes by: `cgroups(7)`.

mod group;
mod hierarchy;
mod setting;
mod walk;

pub use group::ControlGroup;
pub use group::PROCESSES;
pub use setting::Controller;
