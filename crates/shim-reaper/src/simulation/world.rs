use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;
use std::time::Instant;

use super::action::Name;
use super::stops::Stops;
use crate::kernel::simulated::Descriptor;
use crate::shim::{Role, Shim};
use crate::{Exits, ShimExit, Signal};

/// The pids of the processes that come and go. Few, so that they are recycled.
pub(super) const PIDS: std::ops::Range<u32> = 5_000_000..5_000_010;

/// The first pid, and the first name, of the crowd.
pub(super) const CROWD: u32 = 6_000_000;

/// What the simulation knows about processes and registrations, apart from the kernel and the
/// reaper.
#[derive(Debug)]
pub(super) struct World {
    pub(super) names: BTreeMap<Name, Known>,
    pub(super) next_name: Name,
    pub(super) crowd: u32,
    pub(super) registrations: Vec<Registration>,
    pub(super) waiters: BTreeMap<u32, Waiter>,
    pub(super) next_waiter: u32,
    /// All exits since the start.
    pub(super) exits: Exits,
    /// What `exits` had, in this order.
    pub(super) published: Vec<ShimExit>,
    /// How many of them are known to be those of registrations.
    pub(super) checked: usize,
    /// A stream that comes and goes.
    pub(super) stream: Option<Stream>,
    /// The signals that were sent through handles, with the processes that were to get them.
    pub(super) signalled: BTreeSet<(usize, Signal)>,
    /// The leaders whose groups were killed through a handle.
    pub(super) killed_groups: BTreeSet<usize>,
    pub(super) stops: Stops,
    /// The number of the current step of the history.
    pub(super) step: u64,
    /// The pids that have been in use since the current step began.
    pub(super) pids_of_step: BTreeSet<u32>,
    /// The children that are being spawned, the latest last.
    pub(super) spawning: Vec<Spawn>,
    /// The pids of the children that are being adopted.
    pub(super) adopted_pids: Vec<u32>,
    /// Until when a zombie may be late, because something went wrong.
    pub(super) late_until: Instant,
    /// Whether the tokio runtime of the worker was dropped, and no thread could be started.
    pub(super) lacks_worker: bool,
    pub(super) panics: u64,
    /// Panics since a sweep was completed.
    pub(super) recent_panics: u32,
    pub(super) sweeps_at_panic: u64,
    pub(super) reaped: u64,
    /// The processes that the reaper has reaped as orphans.
    pub(super) orphans: BTreeSet<usize>,
    /// The step in which the final drain began.
    pub(super) closed_at: Option<u64>,
    /// How many registrations had ended when the final drain began.
    pub(super) ended_before_drain: u64,
    pub(super) violation: Option<String>,
}

/// A spawn in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spawn {
    pub(super) name: Name,
    pub(super) pid: u32,
    pub(super) leads_group: bool,
    /// `None` until the kernel has created the child.
    pub(super) process: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) process: usize,
    pub(super) pid: u32,
    /// Whether an owner holds its `Child`.
    pub(super) has_owner: bool,
    /// What the `Child` has cached.
    pub(super) cached: Option<ExitStatus>,
    pub(super) zombie_at_step: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Registration {
    pub(super) shim: Arc<Shim<Descriptor>>,
    /// `None` if no process had the pid.
    pub(super) process: Option<usize>,
    pub(super) role: Role,
    /// Whether the reaper had to leave it to its owner, before it was adopted or always.
    pub(super) was_shared: bool,
    /// What became of it when its owner passed it to the reaper.
    pub(super) adoption: Option<Adoption>,
    pub(super) had_pidfd: bool,
    /// Whether it was a child of this process when it was registered.
    pub(super) was_child: bool,
    /// When the process was registered in this role.
    pub(super) at: Instant,
    pub(super) exit: Option<ShimExit>,
    pub(super) is_published: bool,
}

/// How the wait ends that the reaper makes as the owner of a child that it adopts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Adoption {
    /// It has not exited, or was registered before.
    Running,
    /// The wait reaps it.
    Reaped,
    /// The owner had waited for it.
    WaitedFor,
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) shim: Arc<Shim<Descriptor>>,
    pub(super) key: Option<u32>,
    pub(super) flag: Arc<Flag>,
}

/// A stream with a limited buffer, which is read when another one replaces it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) exits: Exits,
    pub(super) capacity: usize,
    /// How many exits were published before.
    pub(super) skipped: usize,
    pub(super) flag: Arc<Flag>,
}

/// A waker that records that it was woken.
#[derive(Debug, Default)]
pub(super) struct Flag {
    woken: AtomicBool,
    panics: bool,
}

impl Flag {
    pub(super) fn new(panics: bool) -> Self {
        Self {
            woken: AtomicBool::new(false),
            panics,
        }
    }

    pub(super) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> bool {
        self.woken.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
        if self.panics {
            // Without the panic hook, which would print it.
            std::panic::resume_unwind(Box::new("a waker panics"));
        }
    }
}

impl World {
    pub(super) fn new(exits: Exits, now: Instant) -> Self {
        Self {
            names: BTreeMap::new(),
            next_name: 0,
            crowd: 0,
            registrations: Vec::new(),
            waiters: BTreeMap::new(),
            next_waiter: 0,
            exits,
            published: Vec::new(),
            checked: 0,
            stream: None,
            signalled: BTreeSet::new(),
            killed_groups: BTreeSet::new(),
            lacks_worker: false,
            stops: Stops::default(),
            step: 0,
            pids_of_step: BTreeSet::new(),
            spawning: Vec::new(),
            adopted_pids: Vec::new(),
            late_until: now,
            panics: 0,
            recent_panics: 0,
            sweeps_at_panic: 0,
            reaped: 0,
            orphans: BTreeSet::new(),
            closed_at: None,
            ended_before_drain: 0,
            violation: None,
        }
    }

    /// Records the first violation.
    pub(super) fn fail(&mut self, violation: String) {
        self.violation.get_or_insert(violation);
    }

    pub(super) fn name_of(&self, process: usize) -> Option<Name> {
        let mut names = self.names.iter();
        let (name, _) = names.find(|(_, known)| known.process == process)?;
        Some(*name)
    }

    pub(super) fn registrations_of(&self, process: usize) -> impl Iterator<Item = &Registration> {
        let registrations = self.registrations.iter();
        registrations.filter(move |registration| registration.process == Some(process))
    }

    /// Returns the number of pidfds that the shims keep because they identify a process group.
    pub(super) fn kept_pidfds(&self) -> usize {
        let shims = self.registrations.iter().map(|one| &one.shim);
        let leaders = shims.filter(|shim| shim.leads_group && !shim.is_locked());
        let kept = leaders.filter(|shim| shim.state().group_pidfd.is_some());
        kept.map(|shim| shim.id).collect::<BTreeSet<_>>().len()
    }

    pub(super) fn became_zombie(&mut self, name: Name) {
        let step = self.step;
        if let Some(known) = self.names.get_mut(&name) {
            known.zombie_at_step.get_or_insert(step);
        }
    }
}
