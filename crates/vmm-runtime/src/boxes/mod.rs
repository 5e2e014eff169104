//! Boxes: their specs, their states, their outcomes, and the records on disk.

mod beginning;
mod closing;
mod gate;
mod index;
mod info;
mod micro_box;
mod outcome;
mod phase;
mod record;
mod spec;
mod state;

pub(crate) use beginning::StartDecision;
pub(crate) use closing::ShutdownTarget;
pub(crate) use index::Boxes;
pub use info::{BoxInfo, BoxStatus};
pub(crate) use micro_box::MicroBox;
pub(crate) use outcome::{Outcome, describe_ending, ending_of_status, record_matches};
pub(crate) use record::BoxRecord;
pub use spec::BoxSpec;
