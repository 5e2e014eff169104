mod burst;
mod cpu;
mod idle;
mod memory;
mod register;
mod spawn;
mod spawn_call;
mod wake;
mod zombie;

use std::time::Duration;

use crate::report::Report;
use crate::samples::Effort;

/// The name that selects a measurement, and its function.
type Measure = (&'static str, fn(&Effort, &mut Report));

/// All measurements. The memory comes first, because threads of the others free memory after their end. Those
/// that make tokio handle SIGCHLD come last.
pub(crate) const ALL: [Measure; 12] = [
    ("memory", memory::run),
    ("zombie", zombie::run),
    ("wake", wake::run),
    ("cpu", cpu::run),
    ("idle", idle::run),
    ("burst", burst::run),
    ("spawn", spawn::run),
    ("spawn-call", spawn_call::run),
    ("register", register::run),
    ("zombie", zombie::run_dropped),
    ("cpu", cpu::run_dropped),
    ("spawn-call", spawn_call::run_ignored),
];

/// Lets new processes and threads settle, including their first periodic work.
const SETTLE: Duration = Duration::from_millis(300);

/// The pause between two kills, so that the work after one exit does not delay the next.
const PAUSE: Duration = Duration::from_micros(500);

/// The number of kills that are not counted: the first ones meet cold caches and a sleeping CPU.
const WARM_UP: usize = 5;

fn thousands(number: usize) -> String {
    if number < 1000 {
        number.to_string()
    } else {
        format!("{},{:03}", number / 1000, number % 1000)
    }
}
