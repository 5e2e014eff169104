//! The output of boxes.

mod lines;
mod reader;

pub use reader::{ConsoleError, ConsoleReader};
