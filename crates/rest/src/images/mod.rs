//! What boxes can be made from.

mod error;
mod image;
mod origin;
mod table;

pub use error::ImageError;
pub use image::Image;
pub(crate) use origin::Origin;
pub use table::ImageTable;
