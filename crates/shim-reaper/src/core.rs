use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

use crate::ShutdownReport;
use crate::effects::Effects;
use crate::intake::Intake;
use crate::kernel::ProcessTable;
use crate::registry::Registry;
use crate::sweep::{Slice, Sweep};

/// How long [`Core::close_blocking`] waits for a slice of the worker's. One takes well under a
/// millisecond; only a copy of the registry in a forked process stays locked for ever.
const PATIENCE: Duration = Duration::from_secs(2);

/// When the first grace period ends, if any runs.
pub(crate) type NextDeadline = Option<Instant>;

/// Everything that the front (reaper and handles) and the worker share.
#[derive(Debug)]
pub(crate) struct Core<K: ProcessTable> {
    pub(crate) intake: Intake<K>,
    /// Locked for one slice at a time, never across an await point.
    registry: Mutex<Registry<K::Pidfd>>,
}

impl<K: ProcessTable> Core<K> {
    pub(crate) fn new(intake: Intake<K>) -> Self {
        Self {
            intake,
            registry: Mutex::new(Registry::new()),
        }
    }

    pub(crate) fn effects(&self) -> Effects<'_, K::Pidfd> {
        Effects::new(&self.intake.subscribers)
    }

    /// Settles whatever is ready, a slice at a time.
    pub(crate) async fn collect(&self, effects: &mut Effects<'_, K::Pidfd>) -> NextDeadline {
        loop {
            let (slice, deadline) = {
                let registry = self.registry.lock().await;
                self.collect_slice(registry, effects)
            };
            if slice == Slice::Done {
                return deadline;
            }
            tokio::task::yield_now().await;
        }
    }

    /// One slice of [`collect`](Self::collect); `None` while the registry is locked.
    pub(crate) fn try_collect(
        &self,
        effects: &mut Effects<'_, K::Pidfd>,
    ) -> Option<(Slice, NextDeadline)> {
        let registry = self.registry.try_lock().ok()?;
        Some(self.collect_slice(registry, effects))
    }

    fn collect_slice(
        &self,
        mut registry: MutexGuard<'_, Registry<K::Pidfd>>,
        effects: &mut Effects<'_, K::Pidfd>,
    ) -> (Slice, NextDeadline) {
        let slice = Sweep::new(&self.intake, &mut registry, effects).collect();
        let deadline = registry.next_deadline();
        drop(registry);
        effects.deliver();
        (slice, deadline)
    }

    /// One interval sweep, a slice at a time.
    pub(crate) async fn sweep(&self, effects: &mut Effects<'_, K::Pidfd>) -> NextDeadline {
        let mut first = true;
        loop {
            let (slice, deadline) = {
                let mut registry = self.registry.lock().await;
                let mut sweep = Sweep::new(&self.intake, &mut registry, effects);
                if first {
                    sweep.begin_pass();
                }
                (sweep.pass(), registry.next_deadline())
            };
            effects.deliver();
            if slice == Slice::Done || self.intake.is_closing() {
                return deadline;
            }
            first = false;
            tokio::task::yield_now().await;
        }
    }

    /// Nothing registered, and nothing left to look after.
    pub(crate) fn is_idle(&self) -> bool {
        let Ok(registry) = self.registry.try_lock() else {
            return false;
        };
        registry.is_idle() && self.intake.directory.lock().is_empty()
    }

    /// Refuses new shims, drains, and lets go of the rest; the first caller does, all others get
    /// its report. `None` while a slice of the worker's is under way on another thread.
    pub(crate) fn try_close(&self) -> Option<ShutdownReport> {
        self.intake.token.cancel();
        let mut effects = self.effects();
        let mut registry = self.registry.try_lock().ok()?;
        let first = registry.closed.is_none();
        let report = Sweep::new(&self.intake, &mut registry, &mut effects).close();
        drop(registry);
        drop(effects);
        if first {
            tracing::info!(
                drained = report.drained,
                still_running = report.still_running.len(),
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

    /// [`close`](Self::close) for code that cannot await. Bounded, whatever became of the worker.
    pub(crate) fn close_blocking(&self) -> ShutdownReport {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(report) = self.try_close() {
                return report;
            }
            if Instant::now() >= give_up {
                return ShutdownReport {
                    drained: 0,
                    still_running: self.intake.directory.pids(),
                };
            }
            thread::sleep(Duration::from_micros(50));
        }
    }
}
