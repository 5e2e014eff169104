//! The faults that must not happen, and how often each has.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// A run whose end was never reported.
    EndsLost,
    /// A reported end that the run cannot have had.
    EndsWrong,
    EndsReportedTwice,
    /// A reported end that was reported differently later.
    EndsForgotten,
    /// A change without an event.
    EventsLost,
    /// An event that cannot follow the one before it.
    EventsWrong,
    /// A restart that the policy of the box requires, or does not allow.
    RestartsWrong,
    /// A health state that the probe cannot have.
    HealthWrong,
    /// An operation that failed without a reason.
    Refused,
    /// An operation without a reply.
    Hung,
    /// A runtime process that did not open the home, that ended by itself, or that did not end with
    /// code 0 when it was shut down.
    Crashed,
    ZombiesLeft,
    ProcessesLeft,
    ControlGroupsLeft,
    FilesLeft,
    /// More descriptors or memory of a runtime without boxes than at first.
    ResourcesLeft,
}

const COLUMNS: [Column; 16] = [
    Column::EndsLost,
    Column::EndsWrong,
    Column::EndsReportedTwice,
    Column::EndsForgotten,
    Column::EventsLost,
    Column::EventsWrong,
    Column::RestartsWrong,
    Column::HealthWrong,
    Column::Refused,
    Column::Hung,
    Column::Crashed,
    Column::ZombiesLeft,
    Column::ProcessesLeft,
    Column::ControlGroupsLeft,
    Column::FilesLeft,
    Column::ResourcesLeft,
];

/// The number of faults printed with the history of their box.
const SHOWN: usize = 10;

#[derive(Default)]
pub(crate) struct Losses(Mutex<Vec<(Column, String)>>);

impl Losses {
    fn all(&self) -> MutexGuard<'_, Vec<(Column, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a fault. Prints it at once if it is one of the first, because the program may be killed.
    pub(crate) fn add(&self, column: Column, details: impl Into<String>) {
        let details = details.into();
        let mut all = self.all();
        if all.len() < SHOWN {
            println!("{column:?}: {details}");
        }
        all.push((column, details));
    }

    pub(crate) fn count(&self) -> usize {
        self.all().len()
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all();
        for column in COLUMNS {
            let count = all.iter().filter(|(of, _)| *of == column).count();
            writeln!(f, "{:<18} {count}", format!("{column:?}"))?;
        }
        for (n, (column, details)) in all.iter().enumerate() {
            let first_line = details.lines().next().unwrap_or_default();
            let shown = if n < SHOWN { details } else { first_line };
            writeln!(f, "{column:?}: {shown}")?;
        }
        Ok(())
    }
}
