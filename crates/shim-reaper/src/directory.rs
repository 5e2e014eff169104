use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, PoisonError};

use crate::shim::Shim;
use crate::sync::{Mutex, MutexGuard};

/// The registered shims by pid. A registration is complete once its shim is in here.
///
/// A plain mutex protects it, held no longer than a system call takes. The registry's async mutex
/// does not fit: a registration does not await, and a future that is queued for that fair mutex and
/// never polled again would block the sweep.
#[derive(Debug)]
pub(crate) struct Directory<P>(Mutex<Entries<P>>);

#[derive(Debug)]
pub(crate) struct Entries<P> {
    next_id: u64,
    by_pid: HashMap<u32, Arc<Shim<P>>>,
    pending: Vec<Pending<P>>,
}

/// A shim that the registry has to admit or to check.
#[derive(Debug)]
pub(crate) struct Pending<P> {
    pub(crate) shim: Arc<Shim<P>>,
    pub(crate) check: Check,
}

/// When the registry checks a pending shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// When its watch reports an event, or an interval sweep reaches it.
    OnEvent,
    /// At once, because no watch reports what is already known.
    Now,
    /// At once: the process did not exist when it was registered.
    NotFound,
    /// At once: the registry knows the shim already.
    Again,
}

impl<P> Directory<P> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Entries {
            next_id: 0,
            by_pid: HashMap::new(),
            pending: Vec::new(),
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Entries<P>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_pending(&self) -> Vec<Pending<P>> {
        mem::take(&mut self.lock().pending)
    }

    /// Removes a shim, unless its pid now belongs to another registered process.
    pub(crate) fn remove(&self, shim: &Shim<P>) {
        let mut entries = self.lock();
        let current = entries.by_pid.get(&shim.pid);
        if current.is_some_and(|current| current.id == shim.id) {
            entries.by_pid.remove(&shim.pid);
        }
    }

    /// Returns all shims, in the order of their registration.
    pub(crate) fn shims(&self) -> Vec<Arc<Shim<P>>> {
        let mut shims: Vec<_> = self.lock().by_pid.values().map(Arc::clone).collect();
        shims.sort_unstable_by_key(|shim| shim.id);
        shims
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.lock().by_pid.keys().copied().collect();
        pids.sort_unstable();
        pids
    }
}

#[cfg(any(test, feature = "simulation"))]
impl<P> Directory<P> {
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self.0.try_lock(), Err(std::sync::TryLockError::WouldBlock))
    }
}

impl<P> Entries<P> {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_pid.is_empty() && self.pending.is_empty()
    }

    pub(crate) fn get(&self, pid: u32) -> Option<&Arc<Shim<P>>> {
        self.by_pid.get(&pid)
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn insert(&mut self, shim: &Arc<Shim<P>>, check: Check) {
        self.by_pid.insert(shim.pid, Arc::clone(shim));
        self.insert_earlier(shim, check);
    }

    /// Adds a shim that has ended, while its pid belongs to another registered process.
    pub(crate) fn insert_earlier(&mut self, shim: &Arc<Shim<P>>, check: Check) {
        self.pending.push(Pending {
            shim: Arc::clone(shim),
            check,
        });
    }

    /// Makes the registry check a shim again that it knows already.
    pub(crate) fn request_check(&mut self, shim: &Arc<Shim<P>>) {
        self.pending.push(Pending {
            shim: Arc::clone(shim),
            check: Check::Again,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::Role;

    #[test]
    fn directory_is_empty_without_a_shim_only() {
        let directory = Directory::<()>::new();
        assert!(directory.lock().is_empty());
        let shim = Arc::new(Shim::new(7, 1, false, Role::Owned, None, None));
        directory.lock().insert(&shim, Check::OnEvent);
        assert!(!directory.lock().is_empty());
        directory.take_pending();
        assert!(!directory.lock().is_empty());
    }
}
