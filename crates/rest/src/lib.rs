#![forbid(unsafe_code)]

mod images;
pub mod wire;

pub use images::{Image, ImageError, ImageTable};
