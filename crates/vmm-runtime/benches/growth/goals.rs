//! What the measurements are compared with.

use super::Values;

/// What a measurement is compared with.
pub enum Goal {
    /// The ratio of the last column to the first.
    Flat(f64),
    /// The ratio to another measurement in the last column.
    Beside(&'static str, f64),
    /// The value in the last column.
    AtMost(f64),
}

pub const START: &str = "start of one box, ms";
pub const LIFE: &str = "CPU time of a life, of the runtime and the shim, ms";
pub const REMOVAL: &str = "removal of one attached box, ms";
pub const REMOVALS: &str = "removal of all attached boxes, ms each";

/// The goals, by measurement.
pub const GOALS: [(&str, Goal); 9] = [
    (START, Goal::Flat(1.2)),
    (LIFE, Goal::Flat(1.2)),
    (START_AFTER_BURST, Goal::Beside(START, 1.2)),
    (THREADS, Goal::Flat(1.2)),
    ("CPU time of a crash, ms", Goal::Flat(1.2)),
    ("what GET /metrics reads, ms", Goal::AtMost(1.0)),
    (
        "CPU time of a crash beside re-attached boxes, ms",
        Goal::Flat(1.2),
    ),
    (FIRST_REMOVAL, Goal::Beside(REMOVAL, 2.0)),
    (
        "removal of all other re-attached boxes, ms each",
        Goal::Beside(REMOVALS, 2.0),
    ),
];

pub const START_AFTER_BURST: &str = "start of one box after 200 removals, ms";
pub const THREADS: &str = "threads after 200 removals";
pub const FIRST_REMOVAL: &str = "removal of the first re-attached box, ms";

/// Returns the last three cells of a row.
pub fn verdict(name: &str, values: &[f64], last: &Values) -> String {
    let (Some(first), Some(value)) = (values.first(), values.last()) else {
        return String::new();
    };
    let (measured, limit, target) = match GOALS.iter().find(|(of, _)| *of == name) {
        Some((_, Goal::Flat(limit))) => (value / first, *limit, format!("flat, {limit} x")),
        Some((_, Goal::Beside(other, limit))) => {
            let beside = last.iter().find(|(name, _)| name == other);
            let beside = beside.map_or(f64::NAN, |(_, value)| *value);
            (value / beside, *limit, format!("{limit} x of the {other}"))
        }
        Some((_, Goal::AtMost(limit))) => (*value, *limit, format!("at most {limit}")),
        None => return format!("{:.2} | | ", value / first),
    };
    let met = if measured <= limit { "yes" } else { "**no**" };
    format!("{measured:.2} | {target} | {met}")
}
