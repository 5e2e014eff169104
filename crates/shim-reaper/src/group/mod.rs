//! The groups that are signalled with a shim: the process group that it leads, or the control group
//! in which it was created.

mod control_group;
mod error;
mod process_group;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_group::ControlGroup;
pub use error::GroupError;
pub(crate) use process_group::End;
use process_group::ProcessGroup;

use crate::Signal;
use crate::kernel::ProcessTable;
use crate::shim::Shim;

/// How often processes are checked of which no event is known: members without a pidfd, and control groups
/// of version 1.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The group of one shim.
#[derive(Debug)]
pub(crate) struct Group<'a, K: ProcessTable> {
    kernel: &'a K,
    shim: &'a Shim<K::Pidfd>,
    kind: Kind<'a, K>,
}

#[derive(Debug)]
enum Kind<'a, K: ProcessTable> {
    Control(ControlGroup<'a>),
    Process(ProcessGroup<'a, K>),
}

impl<'a, K: ProcessTable> Group<'a, K> {
    /// Returns the group of a shim: its control group if it has one, else the process group that it
    /// leads.
    pub(crate) fn of(kernel: &'a K, shim: &'a Shim<K::Pidfd>) -> Option<Self> {
        let kind = match &shim.control_group {
            Some(dir) => Kind::Control(ControlGroup::new(dir, shim.pid)),
            None if shim.leads_group => Kind::Process(ProcessGroup::new(kernel, shim)),
            None => return None,
        };
        Some(Self { kernel, shim, kind })
    }

    /// Sends a signal to every process in the group.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), GroupError> {
        let sent = match &self.kind {
            Kind::Control(group) => group.signal(signal),
            Kind::Process(group) => group.signal(signal),
        };
        self.finish_signal(signal);
        sent
    }

    /// Sends SIGKILL to every process in the group, until none is left.
    pub(crate) fn kill(&mut self, deadline: Instant) -> Result<(), GroupError> {
        let killed = match &mut self.kind {
            Kind::Control(group) => group.kill(deadline),
            Kind::Process(group) => group.kill(deadline),
        };
        self.finish_signal(Signal::SIGKILL);
        killed
    }

    /// Waits until no process but zombies is left in the group, or `deadline` has passed. Returns
    /// whether none is left.
    pub(crate) fn await_empty(&mut self, deadline: Instant) -> Result<bool, GroupError> {
        match &mut self.kind {
            Kind::Control(group) => group.await_empty(deadline),
            Kind::Process(group) => group.await_empty(deadline),
        }
    }

    /// Sends SIGKILL to the shim itself too, which may have left its group, and records it.
    fn finish_signal(&self, signal: Signal) {
        if signal == Signal::SIGKILL {
            // Fails if the shim has ended.
            let _ = self.shim.signal(self.kernel, signal);
        }
    }
}

/// Waits until the groups of the shims have no process but zombies, or `deadline` has passed. Returns the
/// shims whose groups have not ended, as far as the kernel reports.
pub(crate) fn end_all<K: ProcessTable>(
    kernel: &K,
    mut shims: Vec<Arc<Shim<K::Pidfd>>>,
    deadline: Instant,
    how: End,
) -> Vec<Arc<Shim<K::Pidfd>>> {
    let mut left = BTreeSet::new();
    let mut report = |shim: &Shim<K::Pidfd>, ended: Result<bool, GroupError>| {
        let has_ended = ended.unwrap_or_else(|error| {
            tracing::warn!(pid = shim.pid, ?error, "cannot end the group of the shim");
            matches!(error, GroupError::Unidentified { .. })
        });
        if !has_ended {
            left.insert(shim.id);
        }
    };
    let mut process_groups = Vec::new();
    for shim in &shims {
        match Group::of(kernel, shim).map(|group| group.kind) {
            None => {}
            Some(Kind::Control(group)) => report(shim, group.end(deadline, how)),
            Some(Kind::Process(group)) => process_groups.push(group),
        }
    }
    let process_groups = process_groups.iter_mut().collect();
    process_group::end_all(kernel, process_groups, deadline, how, report);
    shims.retain(|shim| left.contains(&shim.id));
    shims
}
