//! Templates from which boxes can be created.

mod error;
mod image;
mod store;
mod table;

pub use error::ImageError;
pub use image::{Image, ImageInfo};
pub use store::{ImageStore, StagedImage};
pub use table::ImageTable;
#[cfg(any(test, fuzzing))]
pub(crate) use table::parse as parse_image;
