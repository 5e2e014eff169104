use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::ShutdownReport;
use crate::directory::{Check, Pending};
use crate::kernel::{ForkedChildren, Orphan};
use crate::shim::Shim;

/// The maximum number of running shims without a pidfd whose identity an interval sweep compares.
/// Reading procfs costs twenty times as much as a wait that finds the child running.
const MAX_COMPARISONS_PER_SWEEP: usize = 512;

/// The shims that the sweep has admitted, by id, and the sets of those that need more than an event
/// of their watch.
#[derive(Debug)]
pub(crate) struct Registry<P> {
    shims: BTreeMap<u64, Entry<P>>,
    /// Shims to check: their watch reported an event, or their registration requested it.
    pub(crate) ready: VecDeque<u64>,
    /// The shim from [`ready`](Self::ready) that is being checked. It is still set afterwards only
    /// if the check panicked.
    unconfirmed: Option<u64>,
    /// Shims whose exit only an interval sweep finds: without a pidfd or a watch, or held by a tracer.
    sweep_only: BTreeSet<u64>,
    /// Dead shims in their grace period, by the end of it.
    deferred: BTreeSet<(Instant, u64)>,
    /// The process groups of ended leaders.
    pub(crate) orphaned_groups: BTreeSet<u32>,
    /// Dead children that may be orphans, each with the end of its grace period.
    pub(crate) orphans: BTreeMap<Orphan, Instant>,
    pub(crate) forked: ForkedChildren,
    pub(crate) cursor: SweepCursor,
    /// The first id of the next spot check.
    spot_check_from: u64,
    /// Set by the final drain.
    pub(crate) closed: Option<ShutdownReport>,
}

#[derive(Debug)]
struct Entry<P> {
    shim: Arc<Shim<P>>,
    phase: Phase,
}

/// How far the reaper has processed the exit of a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Alive,
    /// Dead, and in its grace period.
    Deferred,
    /// The process did not exist when it was registered.
    NotFound,
}

/// The progress of an interval sweep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SweepCursor {
    /// The first sweep-only id that it has not checked.
    next: u64,
    /// The first id whose identity it compares. Kept over several sweeps, so that all get a turn.
    compare_from: u64,
    compared: usize,
    /// Set when opening a pidfd has failed in this sweep.
    pub(crate) pidfds_exhausted: bool,
}

impl<P> Registry<P> {
    pub(crate) fn new() -> Self {
        Self {
            shims: BTreeMap::new(),
            ready: VecDeque::new(),
            unconfirmed: None,
            sweep_only: BTreeSet::new(),
            deferred: BTreeSet::new(),
            orphaned_groups: BTreeSet::new(),
            orphans: BTreeMap::new(),
            forked: ForkedChildren::default(),
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

    pub(crate) fn get(&self, id: u64) -> Option<(Arc<Shim<P>>, Phase)> {
        let entry = self.shims.get(&id)?;
        Some((Arc::clone(&entry.shim), entry.phase))
    }

    /// Adds a pending shim, and queues the check that it asks for.
    pub(crate) fn admit(&mut self, pending: Pending<P>) {
        let Pending { shim, check } = pending;
        let id = shim.id;
        if check != Check::OnEvent {
            self.ready.push_back(id);
        }
        // The registry has it already, or has finished it.
        if check == Check::Again {
            return;
        }
        if !shim.state().is_watched {
            self.sweep_only.insert(id);
        }
        let phase = if check == Check::NotFound {
            Phase::NotFound
        } else {
            Phase::Alive
        };
        self.shims.insert(id, Entry { shim, phase });
    }

    /// Removes a finished shim. If it led a process group, that group may have orphans now.
    pub(crate) fn remove(&mut self, shim: &Shim<P>) {
        self.shims.remove(&shim.id);
        self.sweep_only.remove(&shim.id);
        if shim.leads_group {
            self.orphaned_groups.insert(shim.pid);
        }
    }

    /// Starts the grace period of a dead shim.
    pub(crate) fn defer(&mut self, id: u64, deadline: Instant) {
        self.deferred.insert((deadline, id));
        if let Some(entry) = self.shims.get_mut(&id) {
            entry.phase = Phase::Deferred;
        }
    }

    /// Makes interval sweeps check a shim. Returns false if they check it already.
    pub(crate) fn add_sweep_only(&mut self, id: u64) -> bool {
        // Its grace period, if it had one, is over, and can start again.
        if let Some(entry) = self.shims.get_mut(&id) {
            entry.phase = Phase::Alive;
        }
        self.sweep_only.insert(id)
    }

    pub(crate) fn remove_sweep_only(&mut self, id: u64) {
        self.sweep_only.remove(&id);
    }

    /// Takes the next shim to check; [`finish_ready`](Self::finish_ready) confirms the check.
    pub(crate) fn next_ready(&mut self) -> Option<u64> {
        self.unconfirmed = self.ready.pop_front();
        self.unconfirmed
    }

    pub(crate) fn finish_ready(&mut self) {
        self.unconfirmed = None;
    }

    /// Takes the shim whose check panicked, if any.
    pub(crate) fn take_unconfirmed(&mut self) -> Option<u64> {
        self.unconfirmed.take()
    }

    pub(crate) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Returns a shim whose grace period has expired. It stays deferred until `retry_at`, so that it
    /// is checked again if its check panics; [`finish_expired`](Self::finish_expired) confirms the
    /// check.
    pub(crate) fn next_expired(&mut self, now: Instant, retry_at: Instant) -> Option<u64> {
        let (deadline, id) = self.deferred.first().copied()?;
        if deadline > now {
            return None;
        }
        self.deferred.remove(&(deadline, id));
        self.deferred.insert((retry_at, id));
        Some(id)
    }

    pub(crate) fn finish_expired(&mut self, id: u64, retry_at: Instant) {
        self.deferred.remove(&(retry_at, id));
    }

    /// Moves the cursor to the start of a new interval sweep.
    pub(crate) fn begin_sweep(&mut self) {
        self.cursor = SweepCursor {
            compare_from: self.cursor.compare_from,
            ..SweepCursor::default()
        };
    }

    /// Returns up to `count` shims that the interval sweep has to check next.
    pub(crate) fn next_sweep_only(&self, count: usize) -> Vec<u64> {
        let ids = self.sweep_only.range(self.cursor.next..);
        ids.take(count).copied().collect()
    }

    /// Moves the cursor past a shim.
    pub(crate) fn advance_sweep(&mut self, id: u64) {
        self.cursor.next = id + 1;
    }

    pub(crate) fn end_sweep(&mut self) {
        if self.cursor.compared < MAX_COMPARISONS_PER_SWEEP {
            self.cursor.compare_from = 0;
        }
    }

    /// Returns up to `count` shims for a spot check, in turn.
    pub(crate) fn next_spot_checks(&mut self, count: usize) -> Vec<u64> {
        let ids = self.shims.range(self.spot_check_from..);
        let ids: Vec<u64> = ids.take(count).map(|(id, _)| *id).collect();
        self.spot_check_from = match ids.last() {
            Some(last) if ids.len() == count => last + 1,
            _ => 0,
        };
        ids
    }

    /// Forgets the grace periods of orphans.
    pub(crate) fn forget_orphans(&mut self) {
        self.orphans.clear();
        self.forked.clear();
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.shims.keys().copied().collect()
    }

    /// Returns the shims that are in their grace period.
    pub(crate) fn deferred_ids(&self) -> Vec<u64> {
        let deferred = self.shims.iter();
        let deferred = deferred.filter(|(_, entry)| entry.phase == Phase::Deferred);
        deferred.map(|(id, _)| *id).collect()
    }

    /// Removes all shims.
    pub(crate) fn take_all(&mut self) -> Vec<Arc<Shim<P>>> {
        self.sweep_only.clear();
        self.deferred.clear();
        let entries = mem::take(&mut self.shims).into_values();
        entries.map(|entry| entry.shim).collect()
    }
}

#[cfg(any(test, feature = "simulation"))]
impl<P> Registry<P> {
    /// Returns how many entries all sets have.
    pub(crate) fn size(&self) -> usize {
        let sets = [
            self.shims.len(),
            self.ready.len(),
            self.sweep_only.len(),
            self.deferred.len(),
            self.orphaned_groups.len(),
            self.orphans.len(),
            self.forked.len(),
        ];
        sets.iter().sum()
    }
}

impl SweepCursor {
    /// Returns whether the interval sweep has to compare the identity of this shim.
    pub(crate) fn is_comparison_due(&self, id: u64) -> bool {
        id >= self.compare_from && self.compared < MAX_COMPARISONS_PER_SWEEP
    }

    pub(crate) fn add_comparison(&mut self, id: u64) {
        self.compared += 1;
        if self.compared == MAX_COMPARISONS_PER_SWEEP {
            self.compare_from = id + 1;
        }
    }
}

#[cfg(test)]
mod tests;
