use std::fmt::{self, Display, Formatter};

use fastrand::Rng;

use super::action::{Action, Step};
use super::config::Config;
use super::run::Simulation;
use super::{Coverage, Options};
use crate::kernel::simulated::ProcessState;

/// How many times a failing history is replayed to find a shorter one.
const MAX_REPLAYS: usize = 10_000;

/// By how many calls an interrupt is moved to find a shorter history.
const MAX_SHIFT: u32 = 24;

/// A history, and what it violates.
#[derive(Debug)]
pub(super) struct History {
    config: Config,
    steps: Vec<Step>,
    pub(super) violation: Option<String>,
    coverage: Coverage,
}

impl History {
    /// Performs a random history. A seed always gives the same one.
    pub(super) fn random(seed: u64, options: Options) -> Self {
        let mut rng = Rng::with_seed(seed);
        let config = Config::random(&mut rng, options);
        let length = rng.usize(20..400);
        Self::perform(config, Some(rng.fork()), |simulation| {
            let mut left = length;
            async move {
                let mut steps = Vec::new();
                while left > 0 && simulation.world().violation.is_none() {
                    left -= 1;
                    let action = simulation.choose(&mut rng, false);
                    // A step for each millisecond, so that each has its own calls and can be removed.
                    let (action, count) = match action {
                        Some(Action::Advance { millis }) => (Action::Advance { millis: 1 }, millis),
                        Some(action) => (action, 1),
                        None => continue,
                    };
                    for _ in 0..count {
                        steps.push(simulation.run(Step::new(action)).await);
                    }
                }
                steps
            }
        })
    }

    /// Performs the same steps again.
    #[cfg(test)]
    pub(super) fn replay(&self) -> Self {
        self.with_steps(self.steps.clone())
    }

    /// Performs these steps.
    #[cfg(test)]
    pub(super) fn of(config: Config, steps: Vec<Step>) -> Self {
        let history = Self {
            config,
            steps: Vec::new(),
            violation: None,
            coverage: Coverage::default(),
        };
        history.with_steps(steps)
    }

    fn with_steps(&self, steps: Vec<Step>) -> Self {
        Self::perform(self.config, None, |simulation| async move {
            let mut performed = Vec::new();
            for step in steps {
                performed.push(simulation.run(step).await);
                if simulation.world().violation.is_some() {
                    break;
                }
            }
            performed
        })
    }

    fn perform<F>(
        config: Config,
        rng: Option<Rng>,
        run: impl FnOnce(std::sync::Arc<Simulation>) -> F,
    ) -> Self
    where
        F: Future<Output = Vec<Step>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => unreachable!("cannot create a tokio runtime: {error}"),
        };
        runtime.block_on(async {
            let simulation = Simulation::new(config, rng);
            let steps = run(simulation.clone()).await;
            if simulation.world().violation.is_none() {
                let end = async {
                    finish(&simulation).await;
                    simulation.check_second_stream();
                };
                simulation.catch_panic(end).await;
            }
            let violation = simulation.world().violation.take();
            let coverage = Coverage::of(&simulation, &steps);
            simulation.drop_worker();
            Self {
                config,
                steps,
                violation,
                coverage,
            }
        })
    }

    /// Returns the shortest history that is found to fail too.
    pub(super) fn describe_minimal(self) -> String {
        let length = self.len();
        let minimal = self.minimize();
        format!("{} of {length} actions:\n{minimal}", minimal.len())
    }

    /// Removes what the violation does not need.
    fn minimize(mut self) -> Self {
        let mut replays = MAX_REPLAYS;
        loop {
            let complexity = self.complexity();
            let mut size = self.steps.len().div_ceil(2);
            while size > 0 {
                self.remove_steps(size, &mut replays);
                size /= 2;
            }
            self.simplify_interrupts(&mut replays);
            if self.complexity() == complexity {
                return self;
            }
        }
    }

    fn remove_steps(&mut self, size: usize, replays: &mut usize) {
        let mut start = 0;
        while start < self.steps.len() {
            let mut steps = self.steps.clone();
            steps.drain(start..(start + size).min(steps.len()));
            // The calls before the last interrupt may have been those of a removed process.
            let removed = &self.steps[start].action;
            let shifted = if size == 1 && !matches!(removed, Action::Advance { .. }) {
                with_earlier_interrupts(&steps)
            } else {
                Vec::new()
            };
            let mut candidates = std::iter::once(steps).chain(shifted);
            if !candidates.any(|steps| self.replace_by(steps, replays)) {
                start += size;
            }
        }
    }

    /// Removes interrupts, or makes them steps of their own.
    fn simplify_interrupts(&mut self, replays: &mut usize) {
        let mut position = 0;
        while let Some(step) = self.steps.get(position) {
            let is_simplified = step.simpler().into_iter().any(|replacement| {
                let mut steps = self.steps.clone();
                steps.splice(position..=position, replacement);
                self.replace_by(steps, replays)
            });
            position += usize::from(!is_simplified);
        }
    }

    /// Replaces this history if another one is simpler and fails too.
    fn replace_by(&mut self, steps: Vec<Step>, replays: &mut usize) -> bool {
        if *replays == 0 {
            return false;
        }
        *replays -= 1;
        let replay = self.with_steps(steps);
        let is_better = replay.violation.is_some() && replay.complexity() < self.complexity();
        if is_better {
            *self = replay;
        }
        is_better
    }

    /// Returns the number of actions, and how many of them interrupt another.
    fn complexity(&self) -> (u64, u64) {
        (self.size(), self.size() - self.steps.len() as u64)
    }

    /// Returns how many actions there are, with those that interrupt others. Time that passes is
    /// none.
    pub(super) fn len(&self) -> u64 {
        let passes_time = |step: &&Step| matches!(step.action, Action::Advance { .. });
        self.size() - self.steps.iter().filter(passes_time).count() as u64
    }

    /// Returns all actions, with those that interrupt others, in the order of their beginnings.
    #[cfg(test)]
    pub(super) fn actions(&self) -> Vec<Action> {
        self.steps.iter().flat_map(Step::actions).collect()
    }

    /// Returns the steps, with the time that passes between two others in one step.
    fn merged(&self) -> Vec<Step> {
        let mut merged: Vec<Step> = Vec::new();
        for step in &self.steps {
            let last = merged.last_mut();
            match (last, step.action) {
                (Some(last), Action::Advance { millis })
                    if last.interrupts.is_empty() && step.interrupts.is_empty() =>
                {
                    if let Action::Advance { millis: sum } = &mut last.action {
                        *sum += millis;
                        continue;
                    }
                }
                _ => {}
            }
            merged.push(step.clone());
        }
        merged
    }

    fn size(&self) -> u64 {
        self.steps.iter().map(Step::size).sum()
    }
}

impl Display for History {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.config)?;
        self.merged().iter().try_for_each(|step| step.fmt(f))?;
        match &self.violation {
            Some(violation) => writeln!(f, "violation: {violation}"),
            None => writeln!(f, "no violation"),
        }
    }
}

/// Returns these steps with the interrupts of the last one before each of the calls that are earlier.
fn with_earlier_interrupts(steps: &[Step]) -> Vec<Vec<Step>> {
    let interrupts = steps.last().map(|last| &last.interrupts);
    let first = interrupts.and_then(|interrupts| interrupts.first());
    let first_call = first.map_or(1, |(call, _)| *call);
    let shifts = 1..first_call.min(MAX_SHIFT);
    shifts
        .map(|shift| {
            let mut steps = steps.to_vec();
            if let Some(last) = steps.last_mut() {
                for (call, _) in &mut last.interrupts {
                    *call -= shift;
                }
            }
            steps
        })
        .collect()
}

/// Ends all that is under way, and checks that nothing is left.
async fn finish(simulation: &Simulation) {
    let kernel = simulation.kernel();
    let limit = simulation.config.max_delay();
    kernel.limit_descriptors(usize::MAX);
    while simulation.world().lacks_worker {
        simulation.ensure_worker();
    }
    let unfinished: Vec<_> = simulation.world().names.keys().copied().collect();
    for name in &unfinished {
        simulation.perform(Action::TracerWaits { name: *name });
        simulation.end_wait(*name);
    }
    for name in &unfinished {
        // A stop would wait long for a process that is stuck.
        if simulation.core.shared.is_refusing() {
            simulation.exit_stuck(*name);
        }
    }
    if simulation.core.shared.is_refusing() {
        simulation
            .wait_until(limit, |simulation| !simulation.has_worker())
            .await;
        if simulation.has_worker() || !simulation.is_closed() {
            simulation.world().fail("the reaper does not close".into());
        }
        return;
    }
    let is_settled = |simulation: &Simulation| simulation.unsettled().is_none();
    simulation.wait_until(limit, is_settled).await;
    if let Some(unsettled) = simulation.unsettled() {
        simulation.world().fail(unsettled);
        return;
    }
    for index in 0..kernel.process_count() {
        if kernel.process(index).state.is_running() {
            kernel.set_process(index, ProcessState::Zombie(0));
        }
    }
    simulation.wait_until(limit, is_settled).await;
    // All others are reaped by their parents.
    for index in 0..kernel.process_count() {
        kernel.wait_elsewhere(index);
    }
    simulation.wait_until(limit, Simulation::is_empty).await;
    if !simulation.is_empty() {
        simulation.world().fail("something is left".into());
    }
}

/// Performs a history. Returns what it covers, or the history if it violates an invariant.
pub(super) fn run(seed: u64, options: Options) -> Result<Coverage, Box<History>> {
    let history = History::random(seed, options);
    if history.violation.is_some() {
        return Err(Box::new(history));
    }
    Ok(Coverage {
        steps: history.len(),
        ..history.coverage
    })
}
