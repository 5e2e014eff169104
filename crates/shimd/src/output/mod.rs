//! What the commands print: text, JSON, tables and errors.

mod age;
mod memory;
mod plain;
mod print;
mod progress;
mod table;

pub(crate) use age::format_age;
pub(crate) use memory::format_memory;
pub(crate) use plain::{is_active, plain};
pub(crate) use print::{
    Format, print, print_error, print_json, print_json_line, print_raw, wants_colours,
};
pub(crate) use progress::Progress;
pub(crate) use table::{Cell, Table};
