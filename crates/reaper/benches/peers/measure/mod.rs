mod burst;
mod cpu;
mod idle;
mod memory;
mod register;
mod spawn;
mod wake;
mod zombie;

use crate::effort::Effort;
use crate::report::Report;

/// A measurement, by the name that selects it.
type Measure = (&'static str, fn(&Effort, &mut Report));

/// Those that make tokio handle SIGCHLD come last.
pub(crate) const ALL: [Measure; 10] = [
    ("zombie", zombie::run),
    ("wake", wake::run),
    ("cpu", cpu::run),
    ("idle", idle::run),
    ("burst", burst::run),
    ("spawn", spawn::run),
    ("register", register::run),
    ("memory", memory::run),
    ("zombie", zombie::run_dropped),
    ("cpu", cpu::run_dropped),
];

/// For what was just started to come to rest.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(50);

fn thousands(number: usize) -> String {
    match number {
        ..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    }
}
