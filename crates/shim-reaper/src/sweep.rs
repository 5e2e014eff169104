pub(crate) mod drain;

use std::process::ExitStatus;
use std::sync::Arc;

use crate::directory::Check;
use crate::judge::{Case, Trigger, Verdict, judge};
use crate::kernel::{MAX_READY_EVENTS, ProcessTable, Until};
use crate::missing_pidfd::open_missing_pidfd;
use crate::orphans::reap_orphans;
use crate::outbox::{LogLine, Outbox};
use crate::registry::{Phase, Registry};
use crate::shared::Shared;
use crate::shim::{Role, Shim, State};
use crate::sync::MutexGuard;
use crate::sys::ChildExit;
use crate::{ReapedBy, ReaperCounter, ReaperGauge, ShimExit};

/// The maximum number of shims without a pidfd that a slice checks before it releases the lock and
/// yields.
const MAX_CHECKS_PER_SLICE: usize = 256;

/// The number of watched shims that an interval sweep checks without an event.
const SPOT_CHECKS_PER_SWEEP: usize = 8;

/// One slice of a sweep: selects the shims to check, and carries out the verdicts.
#[derive(Debug)]
pub(crate) struct Sweep<'a, K: ProcessTable> {
    shared: &'a Shared<K>,
    registry: &'a mut Registry<K::Pidfd>,
    outbox: &'a mut Outbox<K::Pidfd>,
    /// The number of shims that this slice has finished.
    finished: u64,
}

/// Whether a slice left work for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    Done,
}

impl<'a, K: ProcessTable> Sweep<'a, K> {
    pub(crate) fn new(
        shared: &'a Shared<K>,
        registry: &'a mut Registry<K::Pidfd>,
        outbox: &'a mut Outbox<K::Pidfd>,
    ) -> Self {
        Self {
            shared,
            registry,
            outbox,
            finished: 0,
        }
    }

    /// Processes the kernel's events, the pending shims, and the expired grace periods.
    pub(crate) fn reap_ready(&mut self) -> Progress {
        if self.registry.closed.is_some() {
            return Progress::Done;
        }
        fail_point!("shim_reaper::reap");
        let unconfirmed = self.registry.take_unconfirmed();
        let events = self.read_events();
        // After the events: a shim is in the directory before its watch can report an event.
        self.admit();
        // A shim whose check panicked comes last, so that it does not delay the others.
        self.registry.ready.extend(unconfirmed);
        self.examine_ready();
        self.examine_expired();
        if events == MAX_READY_EVENTS {
            Progress::More
        } else {
            Progress::Done
        }
    }

    pub(crate) fn begin_interval(&mut self) {
        self.admit();
        self.registry.begin_sweep();
    }

    /// Checks the shims that only an interval sweep checks, a slice of them at a time.
    pub(crate) fn sweep_slice(&mut self) -> Progress {
        if self.registry.closed.is_some() {
            return Progress::Done;
        }
        fail_point!("shim_reaper::pass");
        let ids = self.registry.next_sweep_only(MAX_CHECKS_PER_SLICE);
        for id in &ids {
            self.registry.advance_sweep(*id);
            open_missing_pidfd(self.shared, self.registry, *id);
            self.examine(*id, Trigger::Sweep);
        }
        if ids.len() == MAX_CHECKS_PER_SLICE {
            return Progress::More;
        }
        self.registry.end_sweep();
        self.spot_check();
        reap_orphans(self.shared, self.registry);
        self.shared.counters.add_sweep();
        Progress::Done
    }

    /// Checks the next few watched shims, in case an event was lost.
    fn spot_check(&mut self) {
        let ids = self.registry.next_spot_checks(SPOT_CHECKS_PER_SWEEP);
        if self.has_exited_shim(&ids) {
            for id in ids {
                self.examine(id, Trigger::Sweep);
            }
        }
    }

    /// Returns whether one of these shims has exited, with one system call. Leaves out those without a
    /// pidfd, which every interval sweep checks.
    fn has_exited_shim(&self, ids: &[u64]) -> bool {
        let shims: Vec<_> = ids.iter().filter_map(|id| self.registry.get(*id)).collect();
        let states: Vec<_> = shims.iter().map(|(shim, _)| shim.state()).collect();
        let pidfds = states.iter().filter_map(|state| state.pidfd.as_ref());
        let pidfds: Vec<_> = pidfds.collect();
        !pidfds.is_empty() && self.shared.kernel.any_has_exited(&pidfds)
    }

    /// Queues the shims whose watch has an event. Returns the number of events.
    fn read_events(&mut self) -> usize {
        self.shared
            .kernel
            .ready(&mut self.registry.ready)
            .unwrap_or_else(|error| {
                self.outbox.log(LogLine::CannotReadEvents(error));
                0
            })
    }

    fn admit(&mut self) {
        for pending in self.shared.directory.take_pending() {
            if pending.check == Check::OnEvent {
                self.reap_on_exit(&pending.shim);
            }
            self.registry.admit(pending);
        }
    }

    /// Lets the kernel reap a shim as it exits, unless other code may wait for it. A leader holds the number
    /// of its group until it is reaped under the lock of its state.
    fn reap_on_exit(&self, shim: &Shim<K::Pidfd>) {
        let state = shim.state();
        let is_shared = state.role != Role::Owned || state.tokio_child.is_some();
        if let (Some(pidfd), false) = (&state.pidfd, is_shared || shim.leads_group) {
            self.shared.kernel.reap_on_exit(pidfd, shim.id);
        }
    }

    fn examine_ready(&mut self) {
        while let Some(id) = self.registry.next_ready() {
            self.examine(id, Trigger::Event);
            self.registry.finish_ready();
        }
    }

    fn examine_expired(&mut self) {
        if !self.registry.has_deferred() {
            return;
        }
        let now = self.shared.kernel.now();
        let retry_at = now + self.shared.sweep_interval;
        while let Some(id) = self.registry.next_expired(now, retry_at) {
            self.examine(id, Trigger::GraceExpired);
            self.registry.finish_expired(id, retry_at);
        }
    }

    /// Checks a shim, and carries out the verdict.
    fn examine(&mut self, id: u64, trigger: Trigger) {
        let Some((shim, phase)) = self.registry.get(id) else {
            return;
        };
        fail_point!("shim_reaper::examine");
        let state = shim.state();
        let case = Case {
            pid: shim.pid,
            state: &state,
            phase,
            trigger,
            owner_grace: self.shared.owner_grace,
            compare_identity: self.registry.cursor.is_comparison_due(id),
        };
        let verdict = judge(&self.shared.kernel, &case);
        if case.shows_foreign_wait(&verdict) && self.shared.note_foreign_wait() {
            self.outbox.log(LogLine::ForeignWait { pid: shim.pid });
        }
        match verdict {
            Verdict::Running { identity_compared } => {
                if identity_compared {
                    self.registry.cursor.add_comparison(id);
                }
                if trigger == Trigger::Event {
                    self.watch_again(&state, id, Until::Exited);
                }
            }
            Verdict::HeldByTracer(status) => self.await_tracer(&shim, state, status),
            Verdict::DeferToOwner(exit) => self.defer(&shim, state, phase, exit),
            Verdict::Reaped(exit) => {
                let exit = ShimExit {
                    pid: shim.pid,
                    status: Some(exit.status),
                    reaped_by: ReapedBy::Reaper,
                    rusage: exit.usage,
                };
                self.finish(&shim, state, ReaperCounter::Reaped, exit);
            }
            Verdict::Vanished(status, reaped_by) => {
                let counter = case.counter(reaped_by);
                let exit = ShimExit {
                    pid: shim.pid,
                    status,
                    reaped_by,
                    rusage: None,
                };
                self.finish(&shim, state, counter, exit);
            }
        }
    }

    /// Leaves a zombie to the interval sweeps until its tracer has waited or ended, which no watch
    /// reports. Resolves its handles at once if its status is known, because their holder may be the
    /// one that ends the tracer.
    fn await_tracer(
        &mut self,
        shim: &Shim<K::Pidfd>,
        mut state: MutexGuard<'_, State<K::Pidfd>>,
        status: Option<ExitStatus>,
    ) {
        if status.is_some() {
            let reaped_by = match state.role {
                // Reaped later, by the reaper or by a foreign wait.
                Role::Owned => ReapedBy::Unknown,
                Role::Shared | Role::Attached => ReapedBy::Owner,
            };
            let exit = ShimExit {
                pid: shim.pid,
                status,
                reaped_by,
                rusage: None,
            };
            self.outbox
                .resolve(&self.shared.subscribers, &mut state, exit);
        }
        let added = self.registry.add_sweep_only(shim.id);
        if added {
            self.watch_again(&state, shim.id, Until::Reaped);
        }
    }

    /// Starts the grace period of a dead shim. Its handles resolve if its status is known.
    fn defer(
        &mut self,
        shim: &Shim<K::Pidfd>,
        mut state: MutexGuard<'_, State<K::Pidfd>>,
        phase: Phase,
        exit: Option<ChildExit>,
    ) {
        if let Some(exit) = exit {
            let exit = ShimExit {
                pid: shim.pid,
                status: Some(exit.status),
                reaped_by: ReapedBy::Owner,
                rusage: exit.usage,
            };
            self.outbox
                .resolve(&self.shared.subscribers, &mut state, exit);
        }
        self.watch_again(&state, shim.id, Until::Reaped);
        drop(state);
        if phase == Phase::Deferred {
            return;
        }
        let grace = if exit.is_some() {
            self.shared.owner_grace
        } else {
            self.shared.owner_grace.max(self.shared.sweep_interval)
        };
        self.registry
            .defer(shim.id, self.shared.kernel.now() + grace);
    }

    /// Removes a shim that is reaped, or not a child of this process, counts it, and resolves its
    /// handles.
    fn finish(
        &mut self,
        shim: &Arc<Shim<K::Pidfd>>,
        state: MutexGuard<'_, State<K::Pidfd>>,
        counter: ReaperCounter,
        exit: ShimExit,
    ) {
        let without_pidfd = state.pidfd.is_none();
        drop(state);
        self.finished += 1;
        self.registry.remove(shim);
        self.shared.directory.remove(shim);
        let counters = &self.shared.counters;
        counters.increment(counter);
        if without_pidfd {
            counters.adjust(ReaperGauge::WithoutPidfd, -1);
        }
        counters.adjust(ReaperGauge::Registered, -1);
        let mut state = shim.state();
        state.tokio_child = None;
        match state.pidfd.take() {
            Some(pidfd) if shim.leads_group => {
                self.shared.kernel.unwatch(&pidfd);
                state.group_pidfd = Some(pidfd);
            }
            Some(pidfd) => {
                let pidfd = self.shared.kernel.release(pidfd);
                pidfd.into_iter().for_each(|pidfd| self.outbox.close(pidfd));
            }
            None => {}
        }
        self.outbox
            .resolve(&self.shared.subscribers, &mut state, exit);
    }

    fn watch_again(&mut self, state: &State<K::Pidfd>, id: u64, until: Until) {
        let Some(pidfd) = state.pidfd.as_ref().filter(|_| state.is_watched) else {
            return;
        };
        if let Err(error) = self.shared.kernel.watch_again(pidfd, id, until) {
            self.outbox.log(LogLine::CannotWatchAgain(error));
        }
    }
}

#[cfg(test)]
mod tests;
