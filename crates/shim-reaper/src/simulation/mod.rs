//! A deterministic simulation of the reaper: one seed gives one history of owners, foreign waits,
//! tasks and failures, on a simulated kernel and under virtual time.
//!
//! `benches/simulation` runs any number of histories.

mod action;
mod actors;
mod claims;
mod config;
mod coverage;
mod driver;
mod frame;
mod generator;
mod history;
mod interrupts;
mod oracle;
mod run;
mod stops;
mod streams;
mod timeliness;
mod users;
mod world;

#[cfg(test)]
mod findings;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod model_check;
#[cfg(test)]
mod tests;

pub use coverage::{Coverage, Threat};

pub use crate::kernel::simulated::Mechanism;

/// What a simulation performs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether the reaper uses io_uring where the simulated kernel has it.
    pub io_uring: bool,
    /// What does not work, so that a history has to fail.
    pub switched_off: Option<Mechanism>,
}

/// A history that violates an invariant, or panics.
#[derive(Debug)]
pub struct Violation {
    /// The seed of the history. [`simulate`] with this seed performs it again.
    pub seed: u64,
    /// What the histories before it cover.
    pub before: Coverage,
    history: Box<history::History>,
}

impl Violation {
    /// Returns the shortest history that is found to fail too, and what it violates.
    pub fn minimal_history(self) -> String {
        self.history.describe_minimal()
    }
}

/// Performs histories until they have `steps` actions in total: one at least. Calls `progress` after each
/// history.
///
/// # Errors
///
/// Returns the first history that violates an invariant.
pub fn simulate(
    seed: u64,
    steps: u64,
    options: Options,
    mut progress: impl FnMut(&Coverage),
) -> Result<Coverage, Violation> {
    let mut done = Coverage::default();
    let mut seed = seed;
    loop {
        let history = history::run(seed, options).map_err(|history| Violation {
            seed,
            before: done,
            history,
        })?;
        done.add(&history);
        progress(&done);
        if done.steps >= steps {
            return Ok(done);
        }
        seed = seed.wrapping_add(1);
    }
}
