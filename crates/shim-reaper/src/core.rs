use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

use crate::ShutdownReport;
use crate::kernel::ProcessTable;
use crate::outbox::Outbox;
use crate::registry::Registry;
use crate::shared::Shared;
use crate::sweep::{Progress, Sweep};

/// How long [`Core::close_blocking`] waits for the worker to finish a slice. A slice takes well
/// under a millisecond, and a final drain that awaits foreign waits 10 ms; only in a forked process can the registry stay locked for ever.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The end of the first grace period, if there is one.
pub(crate) type NextDeadline = Option<Instant>;

/// The state that the reaper, its handles and its worker share.
#[derive(Debug)]
pub(crate) struct Core<K: ProcessTable> {
    pub(crate) shared: Shared<K>,
    /// Locked for one slice at a time, and never across an await point.
    registry: Mutex<Registry<K::Pidfd>>,
}

impl<K: ProcessTable> Core<K> {
    pub(crate) fn new(shared: Shared<K>) -> Self {
        Self {
            shared,
            registry: Mutex::new(Registry::new()),
        }
    }

    /// Processes the events that are ready, a slice at a time.
    pub(crate) async fn reap_ready(&self, outbox: &mut Outbox<K::Pidfd>) -> NextDeadline {
        loop {
            let (progress, deadline) = {
                let registry = self.registry.lock().await;
                self.reap_ready_slice(registry, outbox)
            };
            if progress == Progress::Done {
                return deadline;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Does one slice of [`reap_ready`](Self::reap_ready). Returns `None` if the registry is locked.
    pub(crate) fn try_reap_ready(
        &self,
        outbox: &mut Outbox<K::Pidfd>,
    ) -> Option<(Progress, NextDeadline)> {
        let registry = self.registry.try_lock().ok()?;
        Some(self.reap_ready_slice(registry, outbox))
    }

    fn reap_ready_slice(
        &self,
        mut registry: MutexGuard<'_, Registry<K::Pidfd>>,
        outbox: &mut Outbox<K::Pidfd>,
    ) -> (Progress, NextDeadline) {
        let progress = Sweep::new(&self.shared, &mut registry, outbox).reap_ready();
        let deadline = registry.next_deadline();
        drop(registry);
        self.deliver(outbox);
        (progress, deadline)
    }

    /// Does what was deferred until the locks are released.
    fn deliver(&self, outbox: &mut Outbox<K::Pidfd>) {
        outbox.deliver();
        self.shared.log_deferred();
    }

    /// Processes the events that are ready, unless another thread is doing it. Wakes the worker if a
    /// grace period has to end.
    pub(crate) fn reap_ready_blocking(&self) {
        let mut outbox = Outbox::new();
        while let Some((progress, deadline)) = self.try_reap_ready(&mut outbox) {
            // The worker waits for the deadlines that it knows.
            if deadline.is_some() {
                self.shared.wake_worker.notify_one();
            }
            if progress == Progress::Done {
                return;
            }
        }
    }

    /// Does one interval sweep and processes the events that are ready, unless another thread has the
    /// registry locked.
    pub(crate) fn sweep_blocking(&self) {
        let mut outbox = Outbox::new();
        let mut first = true;
        loop {
            let Ok(mut registry) = self.registry.try_lock() else {
                return;
            };
            let mut sweep = Sweep::new(&self.shared, &mut registry, &mut outbox);
            if first {
                sweep.begin_interval();
            }
            let progress = sweep.sweep_slice();
            drop(registry);
            self.deliver(&mut outbox);
            if progress == Progress::Done {
                break;
            }
            first = false;
        }
        self.reap_ready_blocking();
    }

    /// Does one interval sweep, a slice at a time.
    pub(crate) async fn sweep(&self, outbox: &mut Outbox<K::Pidfd>) -> NextDeadline {
        let mut first = true;
        loop {
            let (progress, deadline) = {
                let mut registry = self.registry.lock().await;
                let mut sweep = Sweep::new(&self.shared, &mut registry, outbox);
                if first {
                    sweep.begin_interval();
                }
                (sweep.sweep_slice(), registry.next_deadline())
            };
            self.deliver(outbox);
            if progress == Progress::Done || self.shared.is_closing() {
                return deadline;
            }
            first = false;
            tokio::task::yield_now().await;
        }
    }

    /// Returns true if no shim is registered and no process group has to be checked.
    pub(crate) fn is_idle(&self) -> bool {
        let Ok(registry) = self.registry.try_lock() else {
            return false;
        };
        registry.is_idle() && self.shared.directory.lock().is_empty()
    }

    /// Refuses new shims and does the final drain, unless an earlier call did. Returns its report,
    /// or `None` while another thread has the registry locked.
    pub(crate) fn try_close(&self) -> Option<ShutdownReport> {
        self.shared.token.cancel();
        let mut outbox = Outbox::new();
        let mut registry = self.registry.try_lock().ok()?;
        let first = registry.closed.is_none();
        let report = Sweep::new(&self.shared, &mut registry, &mut outbox).close();
        drop(registry);
        self.deliver(&mut outbox);
        if first {
            tracing::info!(
                drained = report.drained,
                still_running = report.still_running.len(),
                held_by_tracer = report.held_by_tracer.len(),
                "reaper shut down"
            );
        }
        Some(report)
    }

    pub(crate) async fn close(&self) -> ShutdownReport {
        loop {
            if let Some(report) = self.try_close() {
                return report;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Closes like [`close`](Self::close), for code that cannot await. Returns within
    /// [`CLOSE_TIMEOUT`] in every state of the worker.
    pub(crate) fn close_blocking(&self) -> ShutdownReport {
        let kernel = &self.shared.kernel;
        let deadline = kernel.now() + CLOSE_TIMEOUT;
        loop {
            if let Some(report) = self.try_close() {
                return report;
            }
            if kernel.now() >= deadline {
                return ShutdownReport {
                    drained: 0,
                    stopped: self.shared.count_stopped(),
                    still_running: self.shared.directory.pids(),
                    held_by_tracer: Vec::new(),
                    killed: self.shared.take_killed_pids(),
                };
            }
            kernel.sleep(Duration::from_micros(50));
        }
    }
}

#[cfg(any(test, feature = "simulation"))]
impl<K: ProcessTable> Core<K> {
    /// Returns what `inspect` returns, or `None` while the registry is locked.
    pub(crate) fn inspect_registry<T>(
        &self,
        inspect: impl FnOnce(&Registry<K::Pidfd>) -> T,
    ) -> Option<T> {
        Some(inspect(&*self.registry.try_lock().ok()?))
    }
}

#[cfg(test)]
mod tests;
