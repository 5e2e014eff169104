use std::fmt;

use anstyle::Style;

use super::Cell;

/// Columns that line up.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    rows: Vec<[Cell; N]>,
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

    pub(crate) fn row(&mut self, cells: [Cell; N]) {
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
                // No blanks at the end of a line.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_stay_lines() {
        let mut table = Table::new(["NAME", "PID"]);
        table.row(["longer\nname".into(), Cell::or_dash(Some(7))]);
        table.row(["é".into(), Cell::or_dash(None::<u32>)]);
        let plain = anstream::adapter::strip_str(&table.to_string()).to_string();
        assert_eq!(
            plain,
            "NAME          PID\nlonger\u{fffd}name   7\né             -\n"
        );
    }
}
