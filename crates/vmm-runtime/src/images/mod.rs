//! Templates from which boxes can be created.

mod image;
mod table;

pub use image::Image;
#[cfg(any(test, fuzzing))]
pub(crate) use table::parse as parse_image;
pub use table::{ImageError, ImageTable};
