use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};

/// The largest share of the CPUs that other processes may use.
const MAX_FOREIGN_CPU: f64 = 0.05;

/// All measurements of one run.
pub(crate) struct Report {
    rows: Vec<Row>,
    /// The measurements during which other processes used too much of the CPUs, and how much.
    disturbed: Vec<(&'static str, f64)>,
    /// The measurements for which that is unknown.
    unknown: Vec<&'static str>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            rows: Vec::new(),
            disturbed: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Returns the row with this label. Creates it if there is none.
    pub(crate) fn row(&mut self, label: impl Into<String>, unit: Unit) -> &mut Row {
        let label = label.into();
        let position = self.rows.iter().position(|row| row.label == label);
        let index = position.unwrap_or_else(|| {
            self.rows.push(Row::new(label, unit));
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    /// Records the share of the CPUs that other processes used during a measurement.
    pub(crate) fn set_foreign_cpu(&mut self, measure: &'static str, share: f64) {
        if share > MAX_FOREIGN_CPU {
            self.disturbed.push((measure, share));
        }
    }

    /// Records that the share is unknown.
    pub(crate) fn set_unknown_cpu(&mut self, measure: &'static str) {
        self.unknown.push(measure);
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
        let disturbed = self.disturbed.iter();
        let disturbed: Vec<String> = disturbed
            .map(|(measure, share)| format!("{measure} ({:.0} %)", share * 100.0))
            .collect();
        if !disturbed.is_empty() {
            table += &format!(
                "\n**Does not count**, because other processes used more than {:.0} % of the CPUs: {}.\n",
                MAX_FOREIGN_CPU * 100.0,
                disturbed.join(", ")
            );
        }
        if !self.unknown.is_empty() {
            table += &format!(
                "\nUnknown, how much of the CPUs other processes used: {}.\n",
                self.unknown.join(", ")
            );
        }
        table
    }

    pub(crate) fn write_json(&self, file: &Path) {
        let rows: Vec<Json> = self.rows.iter().map(Row::json).collect();
        let text = serde_json::to_string_pretty(
            &json!({ "rows": rows, "counts": self.disturbed.is_empty() }),
        )
        .unwrap();
        fs::write(file, text).unwrap();
    }
}

/// One quantity, measured for several peers.
pub(crate) struct Row {
    label: String,
    unit: Unit,
    values: BTreeMap<Column, Value>,
    goals: Vec<Goal>,
}

impl Row {
    fn new(label: String, unit: Unit) -> Self {
        Self {
            label,
            unit,
            values: BTreeMap::new(),
            goals: Vec::new(),
        }
    }

    pub(crate) fn set(&mut self, column: Column, value: impl Into<Value>) -> &mut Self {
        self.values.insert(column, value.into());
        self
    }

    pub(crate) fn goal(&mut self, against: &'static str, ratio: f64, limit: Limit) -> &mut Self {
        self.goals.push(Goal {
            against,
            ratio,
            limit,
        });
        self
    }

    fn markdown(&self) -> String {
        let value = |column| match self.values.get(&column) {
            Some(value) => value.format(self.unit),
            None => "–".to_owned(),
        };
        let goals = |part: fn(&Goal) -> String| {
            let parts: Vec<String> = self.goals.iter().map(part).collect();
            parts.join("<br>")
        };
        let mut cells = vec![self.label.clone()];
        cells.extend(Column::ALL.map(value));
        cells.push(goals(Goal::format_ratio));
        cells.push(goals(Goal::format_limit));
        cells.push(goals(|goal| {
            if goal.is_met() { "yes" } else { "**no**" }.to_owned()
        }));
        format!("| {} |\n", cells.join(" | "))
    }

    fn json(&self) -> Json {
        let values: serde_json::Map<String, Json> = self
            .values
            .iter()
            .map(|(column, value)| (column.title().to_owned(), json!(value.number())))
            .collect();
        let goals = self.goals.iter().map(|goal| {
            let (bound, limit) = match goal.limit {
                Limit::AtMost(limit) => ("at most", limit),
                Limit::Cheaper(limit) => ("at least, inverted", limit),
            };
            json!({
                "against": goal.against,
                "ratio": goal.ratio,
                "bound": bound,
                "limit": limit,
                "met": goal.is_met(),
            })
        });
        json!({
            "measure": self.label,
            "unit": self.unit.name(),
            "values": values,
            "goals": goals.collect::<Vec<_>>(),
        })
    }
}

/// The column of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    Ours,
    Dedicated,
    IoUring,
    /// This crate, which spawns a command of std.
    OursOfStd,
    TokioAwaited,
    TokioDroppedBusy,
    TokioDroppedIdle,
    AsyncProcess,
    Polling,
    /// A thread blocked in `wait` per child, or the bare system calls.
    Floor,
}

impl Column {
    const ALL: [Self; 10] = [
        Self::Ours,
        Self::Dedicated,
        Self::IoUring,
        Self::OursOfStd,
        Self::TokioAwaited,
        Self::TokioDroppedBusy,
        Self::TokioDroppedIdle,
        Self::AsyncProcess,
        Self::Polling,
        Self::Floor,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Ours => "shim-reaper",
            Self::Dedicated => "shim-reaper, dedicated",
            Self::IoUring => "shim-reaper, io_uring",
            Self::OursOfStd => "shim-reaper, command of std",
            Self::TokioAwaited => "tokio, awaited",
            Self::TokioDroppedBusy => "tokio, dropped, busy",
            Self::TokioDroppedIdle => "tokio, dropped, idle",
            Self::AsyncProcess => "async-process, dropped",
            Self::Polling => "polling thread",
            Self::Floor => "floor",
        }
    }
}

/// The unit of a row. Times are in seconds.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Time,
    Bytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Time => "s",
            Self::Bytes => "bytes",
        }
    }

    fn format(self, value: f64) -> String {
        match self {
            Self::Bytes => format!("{value:.0} B"),
            Self::Time if value < 1e-3 => format!("{} µs", three_digits(value * 1e6)),
            Self::Time if value < 1.0 => format!("{} ms", three_digits(value * 1e3)),
            Self::Time => format!("{} s", three_digits(value)),
        }
    }
}

fn three_digits(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A measured value.
#[derive(Clone, Copy)]
pub(crate) enum Value {
    Measured(f64),
    /// The measurement timed out at this value.
    MoreThan(f64),
}

impl Value {
    fn number(self) -> f64 {
        match self {
            Self::Measured(value) | Self::MoreThan(value) => value,
        }
    }

    fn format(self, unit: Unit) -> String {
        match self {
            Self::Measured(value) => unit.format(value),
            Self::MoreThan(value) => format!("> {}", unit.format(value)),
        }
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Measured(value)
    }
}

/// A ratio to another measurement, and its limit.
struct Goal {
    against: &'static str,
    ratio: f64,
    limit: Limit,
}

/// The limit of a ratio.
#[derive(Clone, Copy)]
pub(crate) enum Limit {
    AtMost(f64),
    /// The other is at least this many times as expensive.
    Cheaper(f64),
}

impl Goal {
    fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.ratio <= limit,
            Limit::Cheaper(limit) => self.ratio >= limit,
        }
    }

    fn format_ratio(&self) -> String {
        match self.limit {
            Limit::AtMost(_) => format!("{:.2} x {}", self.ratio, self.against),
            Limit::Cheaper(_) if self.ratio < 10.0 => {
                format!("{:.2} x below {}", self.ratio, self.against)
            }
            Limit::Cheaper(_) => format!("{:.0} x below {}", self.ratio, self.against),
        }
    }

    fn format_limit(&self) -> String {
        match self.limit {
            Limit::AtMost(limit) => format!("at most {limit}"),
            Limit::Cheaper(limit) => format!("at least {limit}"),
        }
    }
}
