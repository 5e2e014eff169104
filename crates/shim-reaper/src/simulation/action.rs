use std::fmt::{self, Display, Formatter};

use crate::Signal;
use crate::kernel::simulated::{Failure, Resistance};

/// Names a process in a history. Unlike a pid it is never recycled.
pub(super) type Name = u32;

/// What one party does at one moment. An action that its world does not allow does nothing, so that
/// a history stays valid when actions are removed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    // Processes and other waits.
    Fork {
        name: Name,
        pid: u32,
        parent: ForkedBy,
    },
    Exit {
        name: Name,
        code: i32,
    },
    /// Its tracer has to wait first.
    ExitTraced {
        name: Name,
        code: i32,
    },
    TracerWaits {
        name: Name,
    },
    /// Its owner, a foreign wait of this process, or its parent reaps it.
    Wait {
        name: Name,
    },
    BeginWait {
        name: Name,
    },
    EndWait {
        name: Name,
    },
    ForbidInspection {
        name: Name,
    },
    /// It survives SIGTERM, or is stuck in the kernel, from now on.
    Resist {
        name: Name,
        resistance: Resistance,
    },
    /// Every process of the crowd exits.
    ExitCrowd {
        code: i32,
    },

    // Users of the reaper.
    Spawn {
        name: Name,
        pid: u32,
        leads_group: bool,
    },
    SpawnCrowd {
        count: u32,
    },
    Register {
        name: Name,
    },
    /// By a pidfd that was opened while the process ran.
    RegisterPidfd {
        name: Name,
    },
    Attach {
        name: Name,
    },
    Adopt {
        name: Name,
        /// Whether the owner has a pidfd.
        has_pidfd: bool,
    },
    Signal {
        name: Name,
        signal: Signal,
    },
    KillGroup {
        name: Name,
    },
    Await {
        waiter: u32,
        name: Name,
        panics: bool,
    },
    CancelAwait {
        waiter: u32,
    },
    /// In place of the stream before.
    Subscribe {
        capacity: usize,
        panics: bool,
    },
    StopAll {
        millis: u32,
        call: Call,
    },
    CancelToken,
    RequestStop,
    /// With a grace period, stops all processes before.
    ShutDown {
        millis: Option<u32>,
        call: Call,
    },

    // The scheduler.
    PollWorker,
    /// Time passes, and the worker runs whenever it is woken.
    Advance {
        millis: u32,
    },
    /// Time passes while the worker does not run.
    Stall {
        millis: u32,
    },
    /// io_uring reaps the children that have exited, and the worker has not noticed it.
    ReapInKernel,
    /// The tokio runtime of the worker is dropped, and a thread takes over, if it can be started.
    DropRuntime,

    // Failures of the kernel.
    LimitDescriptors {
        free: usize,
    },
    LiftLimit,
    LoseEvent {
        name: Name,
    },
    LoseEventsOfCrowd,
    DelayEvent {
        name: Name,
        millis: u32,
    },
    RepeatEvent {
        name: Name,
    },
    ReportEarly {
        name: Name,
    },
    ReportNoEvent,
    /// A forked child removes the epoll of the reaper from that of tokio.
    UnregisterEpoll,
    FailNext(Failure),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForkedBy {
    /// A child that its owner may wait for.
    Owner,
    /// The same in another thread than the main thread.
    OwnerThread,
    /// A process that is not related to this process.
    Init,
    /// A child of a shim, in its process group.
    Shim(Name),
}

/// How a task or a thread calls a function that blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Blocking,
    Awaited,
    /// The future is dropped after its first poll.
    Dropped,
}

/// An action, and what other parties do at the system calls that it makes.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) action: Action,
    /// By the number of the system call, which they precede.
    pub(super) interrupts: Vec<(u32, Interrupt)>,
}

#[derive(Clone, Debug)]
pub(super) enum Interrupt {
    /// The worker panics in place of the call.
    Panic,
    Step(Step),
}

impl Step {
    pub(super) fn new(action: Action) -> Self {
        Self {
            action,
            interrupts: Vec::new(),
        }
    }

    fn write(&self, f: &mut Formatter<'_>, indent: usize) -> fmt::Result {
        writeln!(f, "{:indent$}{:?}", "", self.action)?;
        for (call, interrupt) in &self.interrupts {
            write!(f, "{:indent$}  before call {call}: ", "")?;
            match interrupt {
                Interrupt::Panic => writeln!(f, "panic")?,
                Interrupt::Step(step) => {
                    writeln!(f)?;
                    step.write(f, indent + 4)?;
                }
            }
        }
        Ok(())
    }

    /// Returns steps that may replace this one, with one interrupt less, or with one that is a step
    /// of its own.
    pub(super) fn simpler(&self) -> Vec<Vec<Self>> {
        let mut found = Vec::new();
        for (number, (call, interrupt)) in self.interrupts.iter().enumerate() {
            let mut rest = self.clone();
            rest.interrupts.remove(number);
            found.push(vec![rest.clone()]);
            let Interrupt::Step(step) = interrupt else {
                continue;
            };
            found.push(vec![step.clone(), rest.clone()]);
            found.push(vec![rest.clone(), step.clone()]);
            for simpler in step.simpler() {
                let mut replaced = rest.clone();
                let simpler = simpler
                    .into_iter()
                    .map(|step| (*call, Interrupt::Step(step)));
                replaced.interrupts.splice(number..number, simpler);
                found.push(vec![replaced]);
            }
        }
        found
    }

    /// Returns its action, and those that interrupt it.
    pub(super) fn actions(&self) -> Vec<Action> {
        let nested = self.interrupts.iter().flat_map(|(_, one)| match one {
            Interrupt::Panic => Vec::new(),
            Interrupt::Step(step) => step.actions(),
        });
        std::iter::once(self.action).chain(nested).collect()
    }

    /// Returns how many actions it consists of.
    pub(super) fn size(&self) -> u64 {
        let interrupts = self.interrupts.iter();
        let nested = interrupts.map(|(_, interrupt)| match interrupt {
            Interrupt::Panic => 1,
            Interrupt::Step(step) => step.size(),
        });
        1 + nested.sum::<u64>()
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write(f, 2)
    }
}
