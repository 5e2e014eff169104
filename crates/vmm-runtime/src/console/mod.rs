//! The output of boxes.

mod lines;
mod reader;
mod stream;

pub use reader::{ConsoleError, ConsoleReader};
pub use stream::{ConsoleQuery, ConsoleStream};
