use std::fmt::Display;
use std::io::{self, Write};

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use serde::Serialize;

use super::plain::plain;
use crate::failure::Failure;

/// The output format of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    #[default]
    Table,
    /// JSON, for programs
    Json,
}

/// Returns true if the stream is a terminal, and neither `NO_COLOR` nor a similar variable is set.
pub(crate) fn wants_colours(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// Prints text to stdout, without its colours if stdout does not want them.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(Failure::Output)
}

/// Prints an error or a warning to stderr, as one line.
pub(crate) fn print_error(message: impl Display) {
    let message = plain(&message.to_string());
    // If stderr is closed, only the exit code remains.
    let _ = writeln!(anstream::stderr(), "shimd: {message}");
}

/// Prints indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print_value(|out| serde_json::to_writer_pretty(out, value))
}

/// Prints JSON on one line, for a stream of values.
pub(crate) fn print_json_line(value: &impl Serialize) -> Result<(), Failure> {
    print_value(|out| serde_json::to_writer(out, value))
}

/// Prints bytes unchanged.
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
