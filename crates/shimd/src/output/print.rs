use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Text as it is, with colours only where they are wanted.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(Failure::Output)
}

/// For people to read as well.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print_value(|out| serde_json::to_writer_pretty(out, value))
}

/// A line of many.
pub(crate) fn print_line_of_json(value: &impl Serialize) -> Result<(), Failure> {
    print_value(|out| serde_json::to_writer(out, value))
}

/// Somebody else's bytes.
pub(crate) fn print_raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(Failure::Output)
}

fn print_value(
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), serde_json::Error>,
) -> Result<(), Failure> {
    let mut text = Vec::new();
    write(&mut text).map_err(|error| Failure::Output(error.into()))?;
    text.push(b'\n');
    print_raw(&text)
}
