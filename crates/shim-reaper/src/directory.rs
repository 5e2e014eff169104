use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::shim::Shim;

/// Who is registered, by pid. What registering, in or out of async code, commits to.
///
/// Behind a plain mutex that is held for no longer than a system call, because the registry's
/// async one would not do: `register_child` cannot await, and a caller's future that queues for a
/// fair async mutex and is then never polled again would keep the sweep from it.
#[derive(Debug)]
pub(crate) struct Directory<P>(Mutex<Entries<P>>);

#[derive(Debug)]
pub(crate) struct Entries<P> {
    next_id: u64,
    by_pid: HashMap<u32, Arc<Shim<P>>>,
    arrivals: Vec<Arrival<P>>,
}

/// A registration that the registry has not admitted yet.
#[derive(Debug)]
pub(crate) struct Arrival<P> {
    pub(crate) shim: Arc<Shim<P>>,
    pub(crate) news: News,
}

/// How soon the registry has to look at an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Whatever happens next is announced by its watch or found by the interval sweep.
    Quiet,
    /// Something is known that no watch will announce.
    Urgent,
    /// There was no such process.
    Absent,
    /// It is known already, and to be looked at again.
    Recalled,
}

impl<P> Directory<P> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Entries {
            next_id: 0,
            by_pid: HashMap::new(),
            arrivals: Vec::new(),
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Entries<P>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take_arrivals(&self) -> Vec<Arrival<P>> {
        mem::take(&mut self.lock().arrivals)
    }

    /// Forgets a shim, unless its pid has been registered for another process since.
    pub(crate) fn remove(&self, shim: &Shim<P>) {
        let mut entries = self.lock();
        let current = entries.by_pid.get(&shim.pid);
        if current.is_some_and(|current| current.id == shim.id) {
            entries.by_pid.remove(&shim.pid);
        }
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.lock().by_pid.keys().copied().collect();
        pids.sort_unstable();
        pids
    }
}

impl<P> Entries<P> {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }

    pub(crate) fn get(&self, pid: u32) -> Option<&Arc<Shim<P>>> {
        self.by_pid.get(&pid)
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn insert(&mut self, shim: &Arc<Shim<P>>, news: News) {
        self.by_pid.insert(shim.pid, Arc::clone(shim));
        self.arrivals.push(Arrival {
            shim: Arc::clone(shim),
            news,
        });
    }

    /// Has the registry look at a shim again that it knows already.
    pub(crate) fn recall(&mut self, shim: &Arc<Shim<P>>) {
        self.arrivals.push(Arrival {
            shim: Arc::clone(shim),
            news: News::Recalled,
        });
    }
}
