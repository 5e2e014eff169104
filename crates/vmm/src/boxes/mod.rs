//! Boxes: what they are to be, what they are, and where that is kept.

mod index;
mod info;
mod micro_box;
mod outcome;
mod record;
mod spec;

pub(crate) use index::Boxes;
pub use info::{BoxInfo, BoxStatus};
pub(crate) use micro_box::{Beginning, Closing, MicroBox};
pub(crate) use outcome::{Outcome, describe, ending_of};
pub(crate) use record::BoxRecord;
pub use spec::BoxSpec;
