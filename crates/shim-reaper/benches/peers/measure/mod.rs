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

/// A measurement, and the name that selects it.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Effort, &mut Report),
    /// Whether the kernel adds the CPU time of the children to that of this process. Otherwise it looks like that of
    /// other processes.
    pub(crate) accounts_for_children: bool,
}

impl Measure {
    const fn new(name: &'static str, run: fn(&Effort, &mut Report)) -> Self {
        Self {
            name,
            run,
            accounts_for_children: true,
        }
    }
}

/// All measurements. The memory comes first, because threads of the others free memory after their end. Those
/// that make tokio handle SIGCHLD come last.
pub(crate) const ALL: [Measure; 12] = [
    Measure::new("memory", memory::run),
    Measure::new("zombie", zombie::run),
    Measure::new("wake", wake::run),
    Measure::new("cpu", cpu::run),
    Measure::new("idle", idle::run),
    Measure::new("burst", burst::run),
    Measure::new("spawn", spawn::run),
    Measure::new("spawn-call", spawn_call::run),
    Measure::new("register", register::run),
    Measure::new("zombie", zombie::run_dropped),
    Measure::new("cpu", cpu::run_dropped),
    // The kernel reaps the children itself.
    Measure {
        accounts_for_children: false,
        ..Measure::new("spawn-call-ignored", spawn_call::run_ignored)
    },
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
