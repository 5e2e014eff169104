//! The invariants. Each compares the reaper with what the simulated kernel knows.

use std::time::Duration;

use super::config::long_grace;
use super::run::Simulation;
use super::world::Registration;
use crate::shim::Role;

impl Simulation {
    /// Checks what must be true after every step.
    pub(super) fn check(&self) {
        self.check_exits();
        self.check_streams();
        self.check_waiters();
        self.check_counters();
        self.check_reasons();
        self.check_zombies();
        self.check_promptness();
        self.check_close();
    }

    /// Checks a reap by the reaper, at once.
    pub(super) fn check_reap(&self, index: usize, is_orphan: bool) {
        let kernel = self.kernel();
        let process = kernel.process(index);
        let age = process.died_at.map(|at| kernel.time() - at);
        let is_older_than = |limit: Duration| age.is_some_and(|age| age >= limit);
        let is_closing = self.core.shared.is_closing();
        let mut world = self.world();
        let name = world.name_of(index);
        let registrations = || world.registrations_of(index);
        let role = registrations().map(|one| one.role).max();
        let allowed = if is_orphan {
            // An attached process ends before it is reaped.
            let is_running =
                |one: &Registration| !one.shim.is_locked() && one.shim.state().is_running();
            is_older_than(long_grace(self.config.grace))
                && !process.forked_by_thread
                && !registrations().any(is_running)
        } else {
            match role {
                None | Some(Role::Attached) => false,
                Some(Role::Shared) => {
                    // No owner holds the `Child` of what became a child later, as an orphan.
                    let has_owner = registrations().any(|one| one.was_child);
                    is_closing || !has_owner || is_older_than(self.config.grace)
                }
                Some(Role::Owned) => !self.is_closed(),
            }
        };
        if is_orphan {
            world.orphans.insert(index);
        } else {
            world.reaped += 1;
        }
        if !allowed {
            world.fail(format!(
                "process {name:?} was reaped at the age of {age:?}, as {role:?}"
            ));
        }
    }

    /// Each task that awaits an exit that is known was woken.
    fn check_waiters(&self) {
        let mut world = self.world();
        let mut waiters = world.waiters.values();
        let forgotten = waiters.find(|one| {
            let is_resolved = !one.shim.state().is_running();
            is_resolved != one.flag.is_woken()
        });
        if let Some(forgotten) = forgotten.map(|one| one.shim.pid) {
            world.fail(format!(
                "a waiter of {forgotten} was woken wrongly or never"
            ));
        }
        world.waiters.retain(|_, waiter| !waiter.flag.is_woken());
    }

    /// The counters equal the history.
    fn check_counters(&self) {
        let stats = self.core.shared.counters.snapshot(true);
        // The worker may wait for the registry, which is then locked.
        let is_closed = self.is_closed() || (self.core.shared.is_closing() && self.has_worker());
        let mut world = self.world();
        let total = world.registrations.len() as u64;
        let orphans_reaped = world.orphans.len() as u64;
        let sum = stats.reaped_total + stats.vanished_total + stats.registered;
        let reaped = stats.reaped_total + self.kernel().unreported_reaps();
        let agree = reaped == world.reaped
            && stats.orphans_reaped_total == orphans_reaped
            && stats.respawns_total == world.panics
            && (sum == total || (is_closed && sum < total && stats.registered == 0))
            && stats.without_pidfd <= stats.registered;
        if !agree {
            let counted = (
                reaped,
                stats.orphans_reaped_total,
                stats.respawns_total,
                sum,
            );
            let history = (world.reaped, orphans_reaped, world.panics, total);
            world.fail(format!(
                "(reaped, orphans, respawns, registrations) are counted as {counted:?}, but \
                 were {history:?}"
            ));
        }
        if self.kernel().has_lost_pidfd() {
            world.fail("a pidfd was closed before its request had ended".into());
        }
        // After a shutdown the handles keep them, to send signals.
        let count = self.kernel().pidfd_count() - world.kept_pidfds();
        if !is_closed && stats.registered as usize + 20 < count {
            world.fail(format!("{count} pidfds for {} shims", stats.registered));
        }
    }

    /// The final drain leaves no zombie, and its report is true.
    fn check_close(&self) {
        if !self.is_closed() {
            return;
        }
        let Some(report) = self.core.try_close() else {
            self.world().fail("the registry is locked".into());
            return;
        };
        let kernel = self.kernel();
        let mut world = self.world();
        let requests = kernel.request_count();
        if requests > 0 {
            world.fail(format!("the final drain left {requests} requests"));
        }
        let unresolved = world.registrations.iter().filter(|one| one.exit.is_none());
        let mut pids: Vec<u32> = unresolved.map(|one| one.shim.pid).collect();
        pids.sort_unstable();
        if pids != report.still_running {
            world.fail(format!("{report:?}, but {pids:?} are unresolved"));
        }
        let ended = self.count_ended();
        let drained = ended - world.ended_before_drain;
        if drained != report.drained {
            let failure = format!("{report:?}, but {drained} ended in the final drain");
            world.fail(failure);
        }
        let was_traced = |pid: &u32| {
            let mut processes = world.registrations.iter().filter_map(|one| one.process);
            processes.any(|index| {
                let process = kernel.process(index);
                process.pid == *pid && process.was_traced
            })
        };
        let left = report.still_running.len() + report.held_by_tracer.len();
        let sum = ended + left as u64;
        let total = world.registrations.len() as u64;
        if sum != total || !report.held_by_tracer.iter().all(was_traced) {
            let failure = format!("{report:?} counts {sum} of {total} shims, or not its tracers");
            world.fail(failure);
        }
        let left = world.registrations.iter().find_map(|registration| {
            let index = registration.process?;
            let zombie_at = world.names.get(&world.name_of(index)?)?.zombie_at_step?;
            let process = kernel.process(index);
            let was_due = zombie_at < world.closed_at? && registration.is_for_zombie(&process);
            was_due.then(|| format!("the final drain left the zombie {}", process.pid))
        });
        if let Some(left) = left {
            world.fail(left);
        }
    }

    /// Returns how many registrations have ended. [`check_counters`](Self::check_counters) compares the
    /// counters with the history.
    pub(super) fn count_ended(&self) -> u64 {
        let stats = self.core.shared.counters.snapshot(true);
        stats.reaped_total + stats.vanished_total
    }

    pub(super) fn is_closed(&self) -> bool {
        let closed = self
            .core
            .inspect_registry(|registry| registry.closed.is_some());
        closed == Some(true)
    }
}
