use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};

use crate::column::Column;
use crate::row::Row;
use crate::unit::Unit;

/// Everything measured in this run.
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// The row of that label; a new one if there is none yet.
    pub(crate) fn row(&mut self, label: impl Into<String>, unit: Unit) -> &mut Row {
        let label = label.into();
        let known = self.rows.iter().position(|row| row.label == label);
        let index = known.unwrap_or_else(|| {
            self.rows.push(Row::new(label, unit));
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    pub(crate) fn table(&self) -> String {
        let mut titles = vec![""];
        titles.extend(Column::ALL.map(Column::title));
        titles.extend(["ratio", "target", "met"]);
        let mut table = format!(
            "| {} |\n|{}\n",
            titles.join(" | "),
            "---|".repeat(titles.len())
        );
        table.extend(self.rows.iter().map(Row::markdown));
        table
    }

    pub(crate) fn write_json(&self, file: &Path) {
        let rows: Vec<Json> = self.rows.iter().map(Row::json).collect();
        let text = serde_json::to_string_pretty(&json!({ "rows": rows })).unwrap();
        fs::write(file, text).unwrap();
    }
}
