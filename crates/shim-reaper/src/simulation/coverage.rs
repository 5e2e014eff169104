//! What the histories of a simulation contain that could break a promise.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};

use super::action::{Action, Step};
use super::run::Simulation;
use crate::kernel::simulated::WaitBy;
use crate::shim::Role;

/// How many histories a simulation has performed, and how many of them could break each promise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    /// The number of histories.
    pub histories: u64,
    /// The number of actions in them.
    pub steps: u64,
    pub(super) by_threat: [u64; Threat::ALL.len()],
}

/// What a promise of the reaper is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threat {
    /// A registered process has an owner or another parent: scoped, no exit stolen.
    OtherParents,
    /// Other code reaps a registered process: no exit lost.
    ForeignWait,
    /// The kernel reaps a process for a request of io_uring: no exit lost.
    ReapInKernel,
    /// An event is lost or late, or a tracer holds a zombie: no zombie stays.
    LostEvent,
    /// Two processes have had the same pid: never the wrong process.
    RecycledPid,
    /// A panic, a failed call, exhausted descriptors or a dropped tokio runtime: outlives trouble.
    Trouble,
    /// A shutdown: bounded shutdown.
    Shutdown,
}

impl Threat {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::OtherParents,
        Self::ForeignWait,
        Self::ReapInKernel,
        Self::LostEvent,
        Self::RecycledPid,
        Self::Trouble,
        Self::Shutdown,
    ];

    fn is_in(self, simulation: &Simulation, actions: &[Action]) -> bool {
        let kernel = simulation.kernel();
        let world = simulation.world();
        let has_action = |is_sought: fn(&Action) -> bool| actions.iter().any(is_sought);
        match self {
            Self::OtherParents => {
                let mut registrations = world.registrations.iter();
                registrations.any(|one| one.role != Role::Owned)
            }
            Self::ForeignWait => {
                let registered = world.registrations.iter().filter_map(|one| one.process);
                let mut reapers = registered.map(|index| kernel.process(index).reaped_by);
                reapers.any(|reaper| reaper == Some(WaitBy::Other))
            }
            Self::ReapInKernel => kernel.has_reaped_for_request(),
            Self::LostEvent => has_action(|action| {
                matches!(
                    action,
                    Action::LoseEvent { .. }
                        | Action::LoseEventsOfCrowd
                        | Action::DelayEvent { .. }
                        | Action::UnregisterEpoll
                        | Action::ExitTraced { .. }
                )
            }),
            Self::RecycledPid => {
                let mut pids = BTreeSet::new();
                let mut processes = 0..kernel.process_count();
                processes.any(|index| !pids.insert(kernel.process(index).pid))
            }
            Self::Trouble => {
                world.panics > 0
                    || has_action(|action| {
                        matches!(
                            action,
                            Action::FailNext(_)
                                | Action::LimitDescriptors { .. }
                                | Action::DropRuntime
                        )
                    })
            }
            Self::Shutdown => world.closed_at.is_some(),
        }
    }
}

impl Display for Threat {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherParents => "scoped, no exit stolen",
            Self::ForeignWait => "no exit lost",
            Self::ReapInKernel => "no exit lost, reaped by io_uring",
            Self::LostEvent => "no zombie stays",
            Self::RecycledPid => "never the wrong process",
            Self::Trouble => "outlives trouble",
            Self::Shutdown => "bounded shutdown",
        })
    }
}

impl Coverage {
    /// Returns how many histories had this threat.
    pub fn count(&self, threat: Threat) -> u64 {
        self.by_threat[threat as usize]
    }

    /// Returns what one history covers.
    pub(super) fn of(simulation: &Simulation, steps: &[Step]) -> Self {
        let actions: Vec<Action> = steps.iter().flat_map(Step::actions).collect();
        Self {
            histories: 1,
            steps: 0,
            by_threat: Threat::ALL.map(|threat| threat.is_in(simulation, &actions).into()),
        }
    }

    pub(super) fn add(&mut self, history: &Self) {
        self.histories += history.histories;
        self.steps += history.steps;
        for (sum, one) in self.by_threat.iter_mut().zip(history.by_threat) {
            *sum += one;
        }
    }
}
