use std::time::Duration;

use super::Sweep;
use crate::judge::Trigger;
use crate::kernel::ProcessTable;
use crate::orphans::reap_orphans;
use crate::{ReaperGauge, ShutdownReport};

/// How long the final drain awaits the foreign waits in progress. The kernel publishes a status
/// microseconds after such a wait has made the process unwaitable, unless the waiting thread has lost its CPU.
pub(crate) const FOREIGN_WAIT_TIMEOUT: Duration = Duration::from_millis(10);

impl<K: ProcessTable> Sweep<'_, K> {
    /// Does the final drain: processes every exit, even in a grace period, and closes the other
    /// shims.
    pub(crate) fn close(&mut self) -> ShutdownReport {
        if let Some(report) = &self.registry.closed {
            return report.clone();
        }
        self.shared.kernel.stop_reaping();
        let unconfirmed = self.registry.take_unconfirmed();
        while self.read_events() > 0 {}
        self.admit();
        self.registry.ready.extend(unconfirmed);
        self.examine_ready();
        // All of them, in case an event was lost.
        for id in self.registry.ids() {
            self.examine(id, Trigger::Sweep);
        }
        self.await_foreign_waits();
        for id in self.registry.deferred_ids() {
            self.examine(id, Trigger::GraceExpired);
        }
        reap_orphans(self.shared, self.registry);
        self.registry.orphaned_groups.clear();
        self.registry.forget_orphans();
        let mut still_running = Vec::new();
        let mut held_by_tracer = Vec::new();
        for shim in self.registry.take_all() {
            let mut state = shim.state();
            if state.close(&mut self.outbox.wakers) {
                still_running.push(shim.pid);
            } else {
                held_by_tracer.push(shim.pid);
            }
            let without_pidfd = state.pidfd.is_none();
            let tokio_child = state.tokio_child.take();
            drop(state);
            if let Some(child) = tokio_child {
                child.release();
            }
            let counters = &self.shared.counters;
            if without_pidfd {
                counters.adjust(ReaperGauge::WithoutPidfd, -1);
            }
            counters.adjust(ReaperGauge::Registered, -1);
            self.shared.directory.remove(&shim);
        }
        // No exit can follow: the registry is empty, and locked.
        self.shared.subscribers.close(&mut self.outbox.wakers);
        still_running.sort_unstable();
        held_by_tracer.sort_unstable();
        let report = ShutdownReport {
            drained: self.finished,
            stopped: self.shared.count_stopped(),
            still_running,
            held_by_tracer,
            killed: self.shared.take_killed_pids(),
        };
        self.registry.closed = Some(report.clone());
        report
    }

    /// Waits until the kernel has published the status of each process that a foreign wait is reaping. An
    /// attached zombie whose status this process may not read looks the same.
    fn await_foreign_waits(&mut self) {
        let kernel = &self.shared.kernel;
        let deadline = kernel.now() + FOREIGN_WAIT_TIMEOUT;
        loop {
            let mut ids = self.registry.deferred_ids();
            ids.retain(|id| {
                let shim = self.registry.get(*id);
                shim.is_some_and(|(shim, _)| shim.state().is_running())
            });
            if ids.is_empty() || kernel.now() >= deadline {
                return;
            }
            kernel.sleep(Duration::from_micros(50));
            for id in ids {
                self.examine(id, Trigger::Sweep);
            }
        }
    }
}
