use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::column::Column;
use crate::goal::{Goal, Limit};
use crate::unit::Unit;
use crate::value::Value;

/// One thing measured, of everybody.
pub(crate) struct Row {
    pub(crate) label: String,
    unit: Unit,
    values: BTreeMap<Column, Value>,
    goals: Vec<Goal>,
}

impl Row {
    pub(crate) fn new(label: String, unit: Unit) -> Self {
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

    pub(crate) fn goal(&mut self, against: &'static str, reached: f64, limit: Limit) -> &mut Self {
        self.goals.push(Goal {
            against,
            reached,
            limit,
        });
        self
    }

    pub(crate) fn markdown(&self) -> String {
        let value = |column| match self.values.get(&column) {
            Some(value) => value.format(self.unit),
            None => "–".to_owned(),
        };
        let of_goals = |part: fn(&Goal) -> String| {
            let parts: Vec<String> = self.goals.iter().map(part).collect();
            parts.join("<br>")
        };
        let mut cells = vec![self.label.clone()];
        cells.extend(Column::ALL.map(value));
        cells.push(of_goals(Goal::reached));
        cells.push(of_goals(Goal::limit));
        cells.push(of_goals(|goal| {
            if goal.is_met() { "yes" } else { "**no**" }.to_owned()
        }));
        format!("| {} |\n", cells.join(" | "))
    }

    pub(crate) fn json(&self) -> Json {
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
                "ratio": goal.reached,
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
