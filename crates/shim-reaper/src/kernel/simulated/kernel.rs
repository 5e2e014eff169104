use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::mechanism::Mechanism;
use super::process::Features;
use super::table::{Table, no_descriptor};
use crate::Signal;
use crate::kernel::NoPidfd;

/// Runs other code at the system calls of the reaper.
pub(crate) trait Interrupts: Debug + Send + Sync {
    /// Called before each system call.
    fn before(&self, call: &'static str);

    /// Called while a thread of the reaper blocks. Lets this time pass.
    fn block(&self, _time: Duration) {}

    /// Called when the reaper creates a child. Returns its process, or `None` if the kernel cannot
    /// create one now.
    fn fork(&self) -> Option<usize> {
        None
    }

    /// Called when the reaper starts a thread.
    fn start_thread(&self, _run: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        Ok(())
    }

    /// Called when the reaper has reaped a process.
    fn reaped(&self, _process: usize, _is_orphan: bool) {}

    /// Called when the reaper sends a signal to a process.
    fn signalled(&self, _process: usize, _signal: Signal) {}

    /// Called when the reaper begins the final drain.
    fn drain_begins(&self) {}
}

#[derive(Debug)]
pub(crate) struct Simulated {
    table: Arc<Mutex<Table>>,
    interrupts: OnceLock<Weak<dyn Interrupts>>,
    next_descriptor: Mutex<u64>,
}

/// A pidfd. Closes its watch, and frees its descriptor, on drop.
#[derive(Debug)]
pub(crate) struct Descriptor {
    pub(crate) process: usize,
    pub(super) number: u64,
    table: Arc<Mutex<Table>>,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        table.epoll.close(self.number);
        table.requests.note_closed(self.number);
        table.descriptors -= 1;
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Simulated {
    #[cfg(test)]
    pub(crate) fn new(features: Features) -> Self {
        Self::starting_at(features, Instant::now())
    }

    pub(crate) fn starting_at(features: Features, now: Instant) -> Self {
        Self {
            table: Arc::new(Mutex::new(Table::new(features, now))),
            interrupts: OnceLock::new(),
            next_descriptor: Mutex::new(0),
        }
    }

    pub(crate) fn set_interrupts(&self, interrupts: Weak<dyn Interrupts>) {
        let _ = self.interrupts.set(interrupts);
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(crate) fn features(&self) -> Features {
        self.table().features
    }

    pub(super) fn lacks(&self, mechanism: Mechanism) -> bool {
        self.features().lacks(mechanism)
    }

    /// Begins to report no exits, without [`Mechanism::FinalDrain`].
    pub(super) fn note_final_drain(&self) {
        if let Some(interrupts) = self.interrupts() {
            interrupts.drain_begins();
        }
        let mut table = self.table();
        table.is_blind |= table.features.lacks(Mechanism::FinalDrain);
    }

    pub(super) fn is_blind(&self) -> bool {
        self.table().is_blind
    }

    /// Does what `pidfd_open` does, at once.
    pub(crate) fn open_now(&self, pid: u32) -> Result<Descriptor, NoPidfd> {
        let mut table = self.table();
        if !table.features.pidfds {
            return Err(NoPidfd::Unsupported);
        }
        let process = table.find(pid).ok_or(NoPidfd::NoProcess)?;
        if !table.take_descriptor() {
            return Err(NoPidfd::Exhausted(no_descriptor()));
        }
        drop(table);
        Ok(self.descriptor(process))
    }

    /// Returns a descriptor that the table has counted already.
    pub(super) fn descriptor(&self, process: usize) -> Descriptor {
        let mut next = self
            .next_descriptor
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        Descriptor {
            process,
            number: *next,
            table: Arc::clone(&self.table),
        }
    }

    pub(super) fn interrupts(&self) -> Option<Arc<dyn Interrupts>> {
        self.interrupts.get()?.upgrade()
    }

    pub(super) fn interrupt(&self, call: &'static str) {
        if let Some(interrupts) = self.interrupts() {
            interrupts.before(call);
        }
    }

    /// Blocks the calling thread.
    pub(super) fn block(&self, time: Duration) {
        match self.interrupts() {
            Some(interrupts) => interrupts.block(time),
            None => self.pass_time(time),
        }
    }
}
