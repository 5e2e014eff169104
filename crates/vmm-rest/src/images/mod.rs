//! What boxes can be made from.

mod check;
mod error;
mod image;
mod origin;
mod table;

pub(crate) use check::check;
pub use error::ImageError;
pub use image::Image;
pub(crate) use origin::Origin;
pub use table::ImageTable;
