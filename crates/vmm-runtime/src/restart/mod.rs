//! What follows the end of a run: a restart by the policy of the box, or its automatic removal.

mod policy;
mod queue;
mod state;
mod task;

pub use policy::{InvalidRestartPolicy, RestartPolicy};
pub(crate) use queue::DueBoxes;
pub(crate) use state::RestartState;
pub(crate) use task::follow_up;
