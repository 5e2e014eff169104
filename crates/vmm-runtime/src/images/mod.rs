//! Templates from which boxes can be created.

mod image;
mod table;

pub use image::Image;
pub use table::{ImageError, ImageTable};
