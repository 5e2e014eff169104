use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::ShutdownReport;
use crate::kernel::Orphan;
use crate::shim::Shim;

/// The shims that the sweep has admitted, by id, and the sets of those that need more than an event
/// of their watch.
#[derive(Debug)]
pub(crate) struct Registry<P> {
    pub(crate) shims: BTreeMap<u64, Entry<P>>,
    /// Shims to check: their watch reported an event, or their registration requested it.
    pub(crate) ready: VecDeque<u64>,
    /// The shim that is being checked. It is still set afterwards only if the check panicked.
    pub(crate) in_flight: Option<u64>,
    /// Shims whose exit only an interval sweep finds: without a pidfd, or held by a tracer.
    pub(crate) sweep_only: BTreeSet<u64>,
    /// Dead shims in their grace period, by the end of it.
    pub(crate) deferred: BTreeSet<(Instant, u64)>,
    /// The process groups of ended leaders, with the end of the grace period of each dead orphan.
    pub(crate) orphaned_groups: BTreeMap<u32, BTreeMap<Orphan, Instant>>,
    pub(crate) cursor: SweepCursor,
    /// The first id of the next spot check.
    pub(crate) spot_check_from: u64,
    /// Set by the final drain.
    pub(crate) closed: Option<ShutdownReport>,
}

#[derive(Debug)]
pub(crate) struct Entry<P> {
    pub(crate) shim: Arc<Shim<P>>,
    pub(crate) phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Alive,
    /// Dead, and in [`Registry::deferred`].
    Deferred,
    /// The process did not exist when it was registered.
    NotFound,
}

/// The progress of an interval sweep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SweepCursor {
    /// The first id of [`Registry::sweep_only`] that it has not checked.
    pub(crate) next: u64,
    /// The first id whose identity it compares. Kept over several sweeps, so that all get a turn.
    pub(crate) compare_from: u64,
    pub(crate) compared: usize,
    /// Set when opening a pidfd has failed in this sweep.
    pub(crate) pidfds_exhausted: bool,
}

impl<P> Registry<P> {
    pub(crate) fn new() -> Self {
        Self {
            shims: BTreeMap::new(),
            ready: VecDeque::new(),
            in_flight: None,
            sweep_only: BTreeSet::new(),
            deferred: BTreeSet::new(),
            orphaned_groups: BTreeMap::new(),
            cursor: SweepCursor::default(),
            spot_check_from: 0,
            closed: None,
        }
    }

    /// Returns when the first grace period ends.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deferred.first().map(|(deadline, _)| *deadline)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.shims.is_empty() && self.orphaned_groups.is_empty()
    }
}
