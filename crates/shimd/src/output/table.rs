use std::fmt;
use std::io::Write;

use anstyle::{AnsiColor, Style};
use tabwriter::TabWriter;
use vmm_rest::wire::BoxStatus;

use super::plain::plain;

/// A table with aligned columns and a heading.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    rows: Vec<[Cell; N]>,
}

/// One value of a [`Table`].
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(heading: [&str; N]) -> Self {
        let bold = |text: &str| Cell {
            text: text.to_owned(),
            style: Style::new().bold(),
        };
        Self {
            rows: vec![heading.map(bold)],
        }
    }

    pub(crate) fn add_row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text of a cell has no control characters, so tabs only separate columns.
        let mut rows = String::new();
        for row in &self.rows {
            let cells = row
                .each_ref()
                .map(|Cell { text, style }| format!("{style}{text}{style:#}"));
            rows.push_str(&cells.join("\t"));
            rows.push('\n');
        }
        let mut aligned = TabWriter::new(Vec::new()).padding(3).ansi(true);
        aligned.write_all(rows.as_bytes()).map_err(|_| fmt::Error)?;
        let aligned = aligned.into_inner().map_err(|_| fmt::Error)?;
        f.write_str(&String::from_utf8_lossy(&aligned))
    }
}

impl Cell {
    /// Creates a cell with the value, or with a dash if there is none.
    pub(crate) fn or_dash(value: Option<impl ToString>) -> Self {
        value.map_or_else(|| "-".into(), |value| value.to_string().into())
    }

    /// Creates a cell with the colour of a status.
    pub(crate) fn with_status(text: String, status: BoxStatus) -> Self {
        let style = match status {
            BoxStatus::Running => AnsiColor::Green.on_default(),
            BoxStatus::Failed => AnsiColor::Red.on_default(),
            _ => Style::new(),
        };
        Self {
            style,
            ..text.into()
        }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self {
            text: plain(text),
            style: Style::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_every_row_is_one_line() {
        let mut table = Table::new(["NAME", "PID"]);
        table.add_row(["longer\nname".into(), Cell::or_dash(Some(7))]);
        table.add_row(["é".into(), Cell::or_dash(None::<u32>)]);
        // Two columns wide each.
        table.add_row(["字字".into(), Cell::or_dash(Some(8))]);
        let plain = anstream::adapter::strip_str(&table.to_string()).to_string();
        assert_eq!(
            plain,
            "NAME          PID\nlonger\u{fffd}name   7\né             -\n\
             字字          8\n"
        );
    }
}
