//! What boxes can be made from.

mod allotment;
mod error;
mod image;
mod table;

pub(crate) use allotment::{Allotment, CPUS, DEFAULT_CPUS, DEFAULT_MEMORY_MIB, MEMORY_MIB};
pub use error::ImageError;
pub use image::Image;
pub use table::ImageTable;
