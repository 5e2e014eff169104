//! Boxes: their specs, their states, their outcomes, and the records on disk.

mod decision;
mod exit;
mod follow_up;
mod gate;
mod id;
mod index;
mod info;
mod list_options;
mod micro_box;
mod outcome;
mod record;
mod spec;
mod state;
mod status;
mod uids;

pub(crate) use decision::{ShutdownTarget, StartDecision, StartRequest};
pub(crate) use follow_up::FollowUp;
pub use id::{BoxId, InvalidBoxId};
pub(crate) use index::Boxes;
pub use info::BoxInfo;
pub use list_options::ListOptions;
pub(crate) use micro_box::MicroBox;
pub(crate) use outcome::Outcome;
pub(crate) use record::BoxRecord;
pub use spec::BoxSpec;
pub use status::{BoxCounts, BoxStatus, HelperCounts};
pub(crate) use uids::BoxUids;
