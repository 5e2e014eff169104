//! A deterministic simulation of the reaper: one seed gives one history of owners, foreign waits,
//! tasks and failures, on a simulated kernel and under virtual time.
//!
//! `benches/simulation` runs any number of histories.

mod action;
mod actors;
mod config;
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

/// A history that violates an invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The seed of the history. [`simulate`] with this seed performs it again.
    pub seed: u64,
    /// The shortest history that was found, and what it violates.
    pub history: String,
}

/// Performs histories until they have `steps` actions in total: one at least. Calls `progress` with
/// the number of actions after each history. With `io_uring`, the kernel reaps the shims.
///
/// # Errors
///
/// Returns the first history that violates an invariant.
pub fn simulate(
    seed: u64,
    steps: u64,
    io_uring: bool,
    mut progress: impl FnMut(u64),
) -> Result<u64, Violation> {
    let mut done = 0;
    let mut seed = seed;
    loop {
        done += history::run(seed, io_uring).map_err(|history| Violation { seed, history })?;
        progress(done);
        if done >= steps {
            return Ok(done);
        }
        seed = seed.wrapping_add(1);
    }
}
