//! Boxes: what they are to be, what they are, and where that is kept.

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

pub(crate) use beginning::Beginning;
pub(crate) use closing::Closing;
pub(crate) use index::Boxes;
pub use info::{BoxInfo, BoxStatus};
pub(crate) use micro_box::MicroBox;
pub(crate) use outcome::{Outcome, describe, ending_of, record_fits};
pub(crate) use record::BoxRecord;
pub use spec::BoxSpec;
