//! What is printed, and how.

mod age;
mod cell;
mod colours;
mod format;
mod plain;
mod print;
mod table;

pub(crate) use age::age_of;
pub(crate) use cell::Cell;
pub(crate) use colours::wants_colours;
pub(crate) use format::Format;
pub(crate) use plain::{is_active, plain};
pub(crate) use print::{print, print_json, print_line_of_json, print_raw};
pub(crate) use table::Table;
