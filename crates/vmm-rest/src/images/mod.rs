//! The images that boxes can be created from.

mod image;
mod label;
mod table;

pub use image::Image;
pub(crate) use image::check_payload;
pub(crate) use label::ImageLabel;
pub use table::{ImageError, ImageTable};
