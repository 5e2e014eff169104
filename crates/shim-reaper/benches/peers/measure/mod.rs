mod burst;
mod cpu;
mod idle;
mod memory;
mod register;
mod spawn;
mod wake;
mod zombie;

use std::time::Duration;

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

/// For what was just started to come to rest, including what is done by interval.
const SETTLE: Duration = Duration::from_millis(300);

/// Between two victims, for what follows one exit not to delay the next.
const PAUSE: Duration = Duration::from_micros(500);

/// Rounds of victims that are not counted: the first meet cold caches and a processor fast asleep.
const WARM_UP: usize = 5;

fn thousands(number: usize) -> String {
    match number {
        ..1000 => number.to_string(),
        _ => format!("{},{:03}", number / 1000, number % 1000),
    }
}
