use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::ShutdownReport;
use crate::kernel::Orphan;
use crate::shim::Shim;

/// What the sweep goes over: every registered shim that it has been told of, by id, and which of
/// them need more than a readiness event.
#[derive(Debug)]
pub(crate) struct Registry<P> {
    pub(crate) tracked: BTreeMap<u64, Tracked<P>>,
    /// Reported by the kernel, or by whoever registered them, and not examined yet.
    pub(crate) ready: VecDeque<u64>,
    /// Being examined: still here afterwards only if that panicked.
    pub(crate) in_flight: Option<u64>,
    /// Those whose zombie only an interval sweep can find: without a pidfd, or held by a tracer.
    pub(crate) unwatched: BTreeSet<u64>,
    /// Dead, and left for a while to whoever else can collect them; by the end of that while.
    pub(crate) left: BTreeSet<(Instant, u64)>,
    /// Process groups whose leader is gone, and when the grace period of each dead orphan in them
    /// ends.
    pub(crate) orphaned_groups: BTreeMap<u32, BTreeMap<Orphan, Instant>>,
    pub(crate) pass: Pass,
    /// Where the next sweep's spot check of watched shims begins.
    pub(crate) spot_check_from: u64,
    pub(crate) closed: Option<ShutdownReport>,
}

#[derive(Debug)]
pub(crate) struct Tracked<P> {
    pub(crate) shim: Arc<Shim<P>>,
    pub(crate) phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Alive,
    /// Dead, and listed in [`Registry::left`].
    Left,
    /// There was no such process when it was registered.
    Absent,
}

/// How far an interval sweep has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pass {
    /// The first unwatched id it has not looked at.
    pub(crate) next: u64,
    /// The first id whose identity is to be compared; goes round over several passes.
    pub(crate) compare_from: u64,
    pub(crate) compared: usize,
    /// Set once an attempt to open a pidfd has failed in this pass.
    pub(crate) exhausted: bool,
}

impl<P> Registry<P> {
    pub(crate) fn new() -> Self {
        Self {
            tracked: BTreeMap::new(),
            ready: VecDeque::new(),
            in_flight: None,
            unwatched: BTreeSet::new(),
            left: BTreeSet::new(),
            orphaned_groups: BTreeMap::new(),
            pass: Pass::default(),
            spot_check_from: 0,
            closed: None,
        }
    }

    /// When the first of those left to their owners is overdue.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.left.first().map(|(deadline, _)| *deadline)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.tracked.is_empty() && self.orphaned_groups.is_empty()
    }
}
