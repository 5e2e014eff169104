use std::fmt;

use anstyle::{AnsiColor, Style};
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
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].text.chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &self.rows {
            for (column, Cell { text, style }) in row.iter().enumerate() {
                write!(f, "{style}{text}{style:#}")?;
                // The last column is not padded.
                if column + 1 < N {
                    let gap = widths[column] + 3 - text.chars().count();
                    write!(f, "{:gap$}", "")?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
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
        let plain = anstream::adapter::strip_str(&table.to_string()).to_string();
        assert_eq!(
            plain,
            "NAME          PID\nlonger\u{fffd}name   7\né             -\n"
        );
    }
}
