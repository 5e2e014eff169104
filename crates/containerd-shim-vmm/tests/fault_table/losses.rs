use std::fmt;

use crate::fixture::Runtime;

/// What a fault has cost: a row of the table.
pub(crate) struct Row {
    pub(crate) fault: String,
    pub(crate) runtime: Runtime,
    /// The number of processes whose exit had to be reported.
    pub(crate) exits: usize,
    /// No event reports the exit.
    pub(crate) lost: usize,
    /// A code is reported that is not the true one.
    pub(crate) wrong: usize,
    /// More than one event reports the exit.
    pub(crate) repeated: usize,
    /// What is still there after the container was deleted.
    pub(crate) leftovers: Vec<String>,
    pub(crate) remark: String,
}

impl Row {
    pub(crate) const HEADER: &str = "| fault | runtime | exits | lost | wrong code | reported twice | left over | | time |\n\
                                     |---|---|---|---|---|---|---|---|---|";

    pub(crate) fn new(fault: impl Into<String>, runtime: Runtime) -> Self {
        Self {
            fault: fault.into(),
            runtime,
            exits: 0,
            lost: 0,
            wrong: 0,
            repeated: 0,
            leftovers: Vec::new(),
            remark: String::new(),
        }
    }

    /// Adds an exit with the codes of its events, the code that `ctr task delete` has returned, and the true one.
    pub(crate) fn add(&mut self, events: &[u64], deleted: Option<u64>, code: u64) {
        self.exits += 1;
        let mut codes = events.iter().copied().chain(deleted);
        self.lost += usize::from(events.is_empty());
        self.wrong += usize::from(codes.any(|reported| reported != code));
        self.repeated += usize::from(events.len() > 1);
    }

    pub(crate) fn is_good(&self, may_repeat: bool) -> bool {
        let losses = self.lost + self.wrong + self.leftovers.len();
        losses == 0 && (may_repeat || self.repeated == 0)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fault,
            exits,
            lost,
            wrong,
            repeated,
            remark,
            ..
        } = self;
        let (runtime, left) = (self.runtime.label(), self.leftovers.len());
        for leftover in &self.leftovers {
            writeln!(f, "  left over: {leftover}")?;
        }
        write!(
            f,
            "| {fault} | {runtime} | {exits} | {lost} | {wrong} | {repeated} | {left} | {remark} |"
        )
    }
}
