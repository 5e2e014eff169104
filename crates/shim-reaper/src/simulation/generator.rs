use fastrand::Rng;

use super::action::{Action, Call, ForkedBy, Name};
use super::config::{Config, Disturbances};
use super::run::Simulation;
use super::world::{PIDS, Registration};
use crate::Signal;
use crate::kernel::simulated::{Failure, Parent, ProcessState, Resistance};

/// The number of the latest names that actions choose from, in addition to those of processes that
/// are not reaped.
const RECENT_NAMES: u32 = 6;

/// A kind of action, and how often it is chosen.
type Weighted = (u32, Kind);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Advance,
    PollWorker,
    Fork,
    Spawn,
    Register,
    RegisterPidfd,
    Attach,
    Adopt,
    Exit,
    ExitTraced,
    TracerWaits,
    Wait,
    BeginWait,
    EndWait,
    Signal,
    KillGroup,
    Await,
    CancelAwait,
    Subscribe,
    ForbidInspection,
    Crowd,
    Event,
    Failure,
    Descriptors,
    Resist,
    Stop,
    Stall,
    DropRuntime,
    ShutDown,
}

/// What happens at any time.
const ALWAYS: &[Weighted] = &[
    (10, Kind::PollWorker),
    (14, Kind::Fork),
    (10, Kind::Spawn),
    (14, Kind::Register),
    (3, Kind::RegisterPidfd),
    (3, Kind::Attach),
    (6, Kind::Adopt),
    (24, Kind::Exit),
    (3, Kind::ExitTraced),
    (4, Kind::TracerWaits),
    (14, Kind::Wait),
    (4, Kind::BeginWait),
    (5, Kind::EndWait),
    (6, Kind::Signal),
    (1, Kind::KillGroup),
    (6, Kind::Await),
    (2, Kind::CancelAwait),
    (1, Kind::Subscribe),
    (2, Kind::ForbidInspection),
    (1, Kind::Crowd),
    (8, Kind::Event),
    (6, Kind::Failure),
    (6, Kind::Descriptors),
    (3, Kind::Resist),
    (1, Kind::Stop),
];

/// What interrupts no system call.
const BETWEEN_STEPS: &[Weighted] = &[
    (40, Kind::Advance),
    (2, Kind::Stall),
    (1, Kind::DropRuntime),
];

/// Chooses the end of a history.
const SHUT_DOWN: Weighted = (1, Kind::ShutDown);

fn choose_kind(rng: &mut Rng, is_interrupt: bool) -> Kind {
    let between: &[Weighted] = if is_interrupt { &[] } else { BETWEEN_STEPS };
    let choices = || ALWAYS.iter().chain(between).chain([&SHUT_DOWN]);
    let mut rest = rng.u32(0..choices().map(|(weight, _)| weight).sum());
    for (weight, kind) in choices() {
        if rest < *weight {
            return *kind;
        }
        rest -= weight;
    }
    Kind::PollWorker
}

fn random_call(rng: &mut Rng) -> Call {
    [Call::Blocking, Call::Awaited, Call::Dropped][rng.usize(0..3)]
}

impl Config {
    fn loses_events(&self) -> bool {
        self.disturbances == Disturbances::Lossy
    }

    fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Event => self.disturbances != Disturbances::None && self.features.pidfds,
            Kind::Descriptors => self.exhausts_descriptors,
            Kind::Crowd => self.crowd > 0,
            _ => true,
        }
    }
}

impl Simulation {
    /// Chooses an action that does something in the current state.
    pub(super) fn choose(&self, rng: &mut Rng, is_interrupt: bool) -> Option<Action> {
        if let Some(action) = self.end_of_spawned(rng) {
            return Some(action);
        }
        if self.kernel().has_due_request() && rng.u32(0..3) == 0 {
            return Some(Action::ReapInKernel);
        }
        for _ in 0..8 {
            let kind = choose_kind(rng, is_interrupt);
            if !self.config.has(kind) {
                continue;
            }
            let action = self.action_of(kind, rng);
            if action.is_some() {
                return action;
            }
        }
        None
    }

    /// Sometimes ends the child that is being spawned, before the reaper can register it.
    fn end_of_spawned(&self, rng: &mut Rng) -> Option<Action> {
        let spawn = self.world().spawning.last().copied()?;
        let state = self.kernel().process(spawn.process?).state;
        let name = spawn.name;
        match state {
            ProcessState::Running if rng.u32(0..4) == 0 => Some(Action::Exit { name, code: 1 }),
            ProcessState::Zombie(_) if rng.bool() => Some(Action::Wait { name }),
            _ => None,
        }
    }

    fn action_of(&self, kind: Kind, rng: &mut Rng) -> Option<Action> {
        let code = rng.i32(0..4);
        Some(match kind {
            Kind::Advance => Action::Advance {
                millis: rng.u32(1..12),
            },
            Kind::Stall => Action::Stall {
                millis: rng.u32(1..40),
            },
            Kind::PollWorker => Action::PollWorker,
            Kind::DropRuntime => Action::DropRuntime,
            Kind::Fork => Action::Fork {
                name: self.new_name(),
                pid: self.free_pid(rng)?,
                parent: match rng.u32(0..6) {
                    0 => ForkedBy::Init,
                    1 | 2 => ForkedBy::Shim(self.leader(rng)?),
                    3 => ForkedBy::OwnerThread,
                    _ => ForkedBy::Owner,
                },
            },
            Kind::Spawn => Action::Spawn {
                name: self.new_name(),
                pid: self.free_pid(rng)?,
                leads_group: rng.u32(0..3) == 0,
            },
            Kind::Register => Action::Register {
                name: self.any(rng, |_| true)?,
            },
            Kind::RegisterPidfd => Action::RegisterPidfd {
                name: self.any(rng, |_| true)?,
            },
            Kind::Attach => Action::Attach {
                name: self.any(rng, |process| process.parent == Parent::Init)?,
            },
            Kind::Adopt => Action::Adopt {
                name: self.owned(rng)?,
                has_pidfd: rng.u32(0..3) == 0,
            },
            Kind::Exit => Action::Exit {
                name: self.any(rng, |process| process.state.is_running())?,
                code: if code == 3 { -15 } else { code },
            },
            Kind::ExitTraced => Action::ExitTraced {
                name: self.any(rng, |process| process.state.is_running())?,
                code,
            },
            Kind::TracerWaits => Action::TracerWaits {
                name: self.any(rng, |process| {
                    matches!(process.state, ProcessState::Traced(_))
                })?,
            },
            Kind::Wait | Kind::BeginWait => {
                let is_zombie = |process: &crate::kernel::simulated::Process| {
                    matches!(process.state, ProcessState::Zombie(_))
                };
                let name = self.any(rng, is_zombie)?;
                if matches!(kind, Kind::Wait) {
                    Action::Wait { name }
                } else {
                    Action::BeginWait { name }
                }
            }
            Kind::EndWait => Action::EndWait {
                name: self.any(rng, |process| {
                    matches!(process.state, ProcessState::BeingReaped(_))
                })?,
            },
            Kind::ForbidInspection => Action::ForbidInspection {
                name: self.any(rng, |process| process.state.is_running())?,
            },
            Kind::Signal => Action::Signal {
                name: match self.stale_handle(rng) {
                    Some(name) if rng.bool() => name,
                    _ => self.any(rng, |_| true)?,
                },
                signal: [Signal::SIGKILL, Signal::SIGTERM][rng.usize(0..2)],
            },
            Kind::KillGroup => Action::KillGroup {
                name: self.any(rng, |process| process.group == Some(process.pid))?,
            },
            Kind::Await => Action::Await {
                waiter: self.new_waiter(),
                name: self.any(rng, |_| true)?,
                panics: rng.u32(0..8) == 0,
            },
            Kind::CancelAwait => {
                let world = self.world();
                let waiters: Vec<u32> = world.waiters.keys().copied().collect();
                Action::CancelAwait {
                    waiter: rng.choice(waiters)?,
                }
            }
            Kind::Subscribe => Action::Subscribe {
                capacity: [1, 3, usize::MAX][rng.usize(0..3)],
                panics: rng.u32(0..8) == 0,
            },
            Kind::Crowd => match self.world().crowd {
                0 => Action::SpawnCrowd {
                    count: self.config.crowd,
                },
                _ if self.config.loses_events() && rng.bool() => Action::LoseEventsOfCrowd,
                _ => Action::ExitCrowd { code },
            },
            Kind::Event => self.event(rng)?,
            Kind::Failure => {
                let mut failures =
                    vec![Failure::Fork, Failure::Thread, Failure::Wait, Failure::Poll];
                if self.config.loses_events() && self.config.features.pidfds {
                    failures.extend([Failure::Ready, Failure::Watch, Failure::Rearm]);
                }
                Action::FailNext(rng.choice(failures)?)
            }
            Kind::Descriptors => match rng.u32(0..6) {
                0 => {
                    let failures = [Failure::Open, Failure::Duplicate, Failure::Procfs];
                    Action::FailNext(failures[rng.usize(0..3)])
                }
                1 | 2 => Action::LimitDescriptors {
                    free: rng.usize(0..3),
                },
                _ => Action::LiftLimit,
            },
            Kind::Resist => Action::Resist {
                name: self.any(rng, |process| {
                    process.state.is_running() && process.resistance == Resistance::None
                })?,
                resistance: match rng.u32(0..4) {
                    0 => Resistance::Sigkill,
                    _ => Resistance::Sigterm,
                },
            },
            Kind::Stop => Action::StopAll {
                millis: rng.u32(0..20),
                call: random_call(rng),
            },
            Kind::ShutDown => match rng.u32(0..12) {
                0 => Action::CancelToken,
                1 => Action::RequestStop,
                2 | 3 => Action::ShutDown {
                    millis: rng.bool().then(|| rng.u32(0..20)),
                    call: random_call(rng),
                },
                _ => return None,
            },
        })
    }

    fn event(&self, rng: &mut Rng) -> Option<Action> {
        let name = self.any(rng, |process| process.state.is_running())?;
        let kinds = if self.config.loses_events() { 7 } else { 3 };
        Some(match rng.u32(0..kinds) {
            0 => Action::RepeatEvent { name },
            1 => Action::ReportEarly { name },
            2 => Action::ReportNoEvent,
            3 => Action::DelayEvent {
                name,
                millis: rng.u32(1..12),
            },
            4 => Action::UnregisterEpoll,
            _ => Action::LoseEvent { name },
        })
    }

    fn new_name(&self) -> Name {
        let mut world = self.world();
        world.next_name += 1;
        world.next_name
    }

    fn new_waiter(&self) -> u32 {
        let mut world = self.world();
        world.next_waiter += 1;
        world.next_waiter
    }

    fn free_pid(&self, rng: &mut Rng) -> Option<u32> {
        let free: Vec<u32> = PIDS.filter(|pid| self.may_fork(*pid)).collect();
        // Those that the reaper has yet to notice are free: it must not confuse the two processes.
        let unnoticed = free.iter().copied().filter(|pid| {
            let world = self.world();
            let mut registrations = world.registrations.iter();
            registrations.any(|one| one.shim.pid == *pid && self.is_unnoticed(one))
        });
        let unnoticed: Vec<u32> = unnoticed.collect();
        rng.choice(unnoticed)
            .filter(|_| rng.bool())
            .or_else(|| rng.choice(free))
    }

    /// Returns whether a process is reaped and its handle does not show that yet.
    fn is_unnoticed(&self, registration: &Registration) -> bool {
        let is_reaped = |index| self.kernel().process(index).state.is_reaped();
        registration.exit.is_none() && registration.process.is_some_and(is_reaped)
    }

    /// Chooses a process that is reaped, whose handle does not show that yet, and whose pid another
    /// process has.
    fn stale_handle(&self, rng: &mut Rng) -> Option<Name> {
        let world = self.world();
        let stale = world
            .registrations
            .iter()
            .filter(|one| self.is_unnoticed(one) && self.kernel().find(one.shim.pid).is_some());
        let names = stale.filter_map(|one| world.name_of(one.process?));
        rng.choice(names.collect::<Vec<_>>())
    }

    /// Chooses a process.
    fn any(
        &self,
        rng: &mut Rng,
        is_suitable: impl Fn(&crate::kernel::simulated::Process) -> bool,
    ) -> Option<Name> {
        let world = self.world();
        let oldest = world.next_name.saturating_sub(RECENT_NAMES);
        let names = world.names.iter().filter(|(name, known)| {
            let process = self.kernel().process(known.process);
            let is_current = **name >= oldest || !process.state.is_reaped();
            is_current && is_suitable(&process)
        });
        rng.choice(names.map(|(name, _)| *name).collect::<Vec<_>>())
    }

    fn owned(&self, rng: &mut Rng) -> Option<Name> {
        let world = self.world();
        let oldest = world.next_name.saturating_sub(2 * RECENT_NAMES);
        let names = world.names.range(oldest..);
        let owned = names.filter(|(_, known)| known.has_owner);
        rng.choice(owned.map(|(name, _)| *name).collect::<Vec<_>>())
    }

    /// Chooses a running leader of a process group.
    fn leader(&self, rng: &mut Rng) -> Option<Name> {
        self.any(rng, |process| {
            process.state.is_running() && process.group == Some(process.pid)
        })
    }
}
