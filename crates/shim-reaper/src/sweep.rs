use std::collections::BTreeMap;
use std::mem;
use std::process::ExitStatus;
use std::sync::{Arc, MutexGuard};

use crate::directory::Check;
use crate::kernel::{MAX_READY_EVENTS, NoPidfd, ProcStat, ProcessTable, Target, Until, WaitResult};
use crate::outbox::Outbox;
use crate::register::Shared;
use crate::registry::{Entry, Phase, Registry, SweepCursor};
use crate::shim::{Role, Shim, State};
use crate::sys::ChildExit;
use crate::{CollectedBy, ShimExit, ShutdownReport};

/// The maximum number of shims without a pidfd that a slice checks before it releases the lock and
/// yields.
const MAX_CHECKS_PER_SLICE: usize = 256;

/// The number of watched shims that an interval sweep checks without an event.
const SPOT_CHECKS_PER_SWEEP: usize = 8;

/// The maximum number of running shims without a pidfd whose identity an interval sweep compares.
/// Reading procfs costs twenty times as much as a wait that finds the child running.
const MAX_COMPARISONS_PER_SWEEP: usize = 512;

/// One slice of a sweep: checks registered shims and processes their exits.
#[derive(Debug)]
pub(crate) struct Sweep<'a, 'b, K: ProcessTable> {
    shared: &'a Shared<K>,
    registry: &'a mut Registry<K::Pidfd>,
    outbox: &'a mut Outbox<'b, K::Pidfd>,
    finished: u64,
}

/// Whether a slice left work for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    Done,
}

/// The reason why a shim is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    /// Its watch reported an event, and has to be re-armed.
    Event,
    Sweep,
    /// Its grace period has expired, or the reaper shuts down.
    GraceExpired,
}

/// The result of a check.
#[derive(Debug)]
enum Verdict {
    Running,
    /// Dead. Its owner may still wait for it, or the kernel may still publish its status.
    DeferToOwner(Option<ChildExit>),
    Reaped(ChildExit),
    Vanished(Option<ExitStatus>, CollectedBy),
}

impl<'a, 'b, K: ProcessTable> Sweep<'a, 'b, K> {
    pub(crate) fn new(
        shared: &'a Shared<K>,
        registry: &'a mut Registry<K::Pidfd>,
        outbox: &'a mut Outbox<'b, K::Pidfd>,
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
        fail_point!("shim_reaper::collect");
        // A shim whose check panicked comes last, so that it does not delay the others.
        let suspect = self.registry.in_flight.take();
        let reported = self.take_ready();
        // In this order: a shim is in the directory before its watch can report an event.
        self.admit();
        self.registry.ready.extend(suspect);
        self.examine_ready();
        self.examine_expired();
        if reported == MAX_READY_EVENTS {
            Progress::More
        } else {
            Progress::Done
        }
    }

    pub(crate) fn begin_interval(&mut self) {
        self.admit();
        let compare_from = self.registry.cursor.compare_from;
        self.registry.cursor = SweepCursor {
            compare_from,
            ..SweepCursor::default()
        };
    }

    /// Checks the shims that only an interval sweep checks, a slice of them at a time.
    pub(crate) fn sweep_slice(&mut self) -> Progress {
        if self.registry.closed.is_some() {
            return Progress::Done;
        }
        fail_point!("shim_reaper::pass");
        let next = self.registry.cursor.next;
        let ids: Vec<u64> = self
            .registry
            .sweep_only
            .range(next..)
            .take(MAX_CHECKS_PER_SLICE)
            .copied()
            .collect();
        for id in &ids {
            self.registry.cursor.next = id + 1;
            self.try_to_watch(*id);
            self.examine(*id, Trigger::Sweep);
        }
        if ids.len() == MAX_CHECKS_PER_SLICE {
            return Progress::More;
        }
        self.end_interval();
        Progress::Done
    }

    fn end_interval(&mut self) {
        if self.registry.cursor.compared < MAX_COMPARISONS_PER_SWEEP {
            self.registry.cursor.compare_from = 0;
        }
        self.spot_check();
        self.reap_orphans();
        self.shared.counters.add_sweep();
    }

    /// Does the final drain: processes every exit, even in a grace period, and closes the other
    /// shims.
    pub(crate) fn close(&mut self) -> ShutdownReport {
        if let Some(report) = &self.registry.closed {
            return report.clone();
        }
        let suspect = self.registry.in_flight.take();
        while self.take_ready() > 0 {}
        self.admit();
        self.registry.ready.extend(suspect);
        self.examine_ready();
        for id in mem::take(&mut self.registry.sweep_only) {
            self.examine(id, Trigger::GraceExpired);
        }
        for (_, id) in mem::take(&mut self.registry.deferred) {
            self.examine(id, Trigger::GraceExpired);
        }
        self.reap_orphans();
        self.registry.orphaned_groups.clear();
        let abandoned = mem::take(&mut self.registry.shims);
        let mut still_running = Vec::new();
        for tracked in abandoned.values() {
            let mut state = tracked.shim.state();
            if state.close(&mut self.outbox.wakers) {
                still_running.push(tracked.shim.pid);
            }
            let without_pidfd = state.pidfd.is_none();
            drop(state);
            self.shared.counters.remove_registered();
            if without_pidfd {
                self.shared.counters.remove_without_pidfd();
            }
            self.shared.directory.remove(&tracked.shim);
        }
        // No exit can follow: the registry is empty, and locked.
        self.shared.subscribers.close(&mut self.outbox.wakers);
        still_running.sort_unstable();
        let report = ShutdownReport {
            drained: self.finished,
            still_running,
        };
        self.registry.closed = Some(report.clone());
        report
    }

    fn take_ready(&mut self) -> usize {
        self.shared
            .kernel
            .ready(&mut self.registry.ready)
            .inspect_err(|error| tracing::debug!(%error, "cannot read process events"))
            .unwrap_or(0)
    }

    fn admit(&mut self) {
        for pending in self.shared.directory.take_pending() {
            let (shim, check) = (pending.shim, pending.check);
            let id = shim.id;
            if check != Check::OnEvent {
                self.registry.ready.push_back(id);
            }
            // The registry has it already, or has finished it.
            if check == Check::Again {
                continue;
            }
            if shim.state().pidfd.is_none() {
                self.registry.sweep_only.insert(id);
            }
            let phase = match check {
                Check::NotFound => Phase::NotFound,
                _ => Phase::Alive,
            };
            self.registry.shims.insert(id, Entry { shim, phase });
        }
    }

    fn examine_ready(&mut self) {
        while let Some(id) = self.registry.ready.pop_front() {
            self.registry.in_flight = Some(id);
            self.examine(id, Trigger::Event);
            self.registry.in_flight = None;
        }
    }

    fn examine_expired(&mut self) {
        if self.registry.deferred.is_empty() {
            return;
        }
        let now = self.shared.kernel.now();
        while let Some((deadline, id)) = self.registry.deferred.first().copied() {
            if deadline > now {
                break;
            }
            // Stays in the set during the check, so that it is checked again if this panics.
            let retry = (now + self.shared.sweep_interval, id);
            self.registry.deferred.remove(&(deadline, id));
            self.registry.deferred.insert(retry);
            self.examine(id, Trigger::GraceExpired);
            self.registry.deferred.remove(&retry);
        }
    }

    /// Checks a few watched shims in turn, in case an event was lost.
    fn spot_check(&mut self) {
        let from = self.registry.spot_check_from;
        let ids: Vec<u64> = self
            .registry
            .shims
            .range(from..)
            .take(SPOT_CHECKS_PER_SWEEP)
            .map(|(id, _)| *id)
            .collect();
        self.registry.spot_check_from = match ids.last() {
            Some(last) if ids.len() == SPOT_CHECKS_PER_SWEEP => last + 1,
            _ => 0,
        };
        for id in ids {
            self.examine(id, Trigger::Sweep);
        }
    }

    /// Reaps the dead orphans in the groups of ended shims, after a grace period, because they may
    /// be children that the embedder forked and waits for. Skips registered processes.
    fn reap_orphans(&mut self) {
        let kernel = &self.shared.kernel;
        let now = kernel.now();
        let deadline = now + self.shared.owner_grace.max(self.shared.sweep_interval);
        self.registry.orphaned_groups.retain(|pgid, deadlines| {
            // Checked first: the number may already belong to another group.
            if !kernel.group_exists(*pgid) {
                return false;
            }
            let found = kernel.dead_orphans(*pgid).into_iter();
            *deadlines = found
                .map(|orphan| (orphan, deadlines.get(&orphan).copied().unwrap_or(deadline)))
                .collect();
            for (orphan, _) in deadlines.iter().filter(|(_, deadline)| **deadline <= now) {
                // Locked during the reap, so that it is not registered in between.
                let entries = self.shared.directory.lock();
                if entries.get(orphan.pid).is_none() && kernel.reap_orphan(*orphan) {
                    self.shared.counters.add_orphan_reaped();
                }
            }
            true
        });
    }

    fn examine(&mut self, id: u64, trigger: Trigger) {
        let Some(tracked) = self.registry.shims.get(&id) else {
            return;
        };
        let shim = Arc::clone(&tracked.shim);
        let phase = tracked.phase;
        fail_point!("shim_reaper::examine");
        let state = shim.state();
        match self.judge(&shim, &state, phase, trigger) {
            Verdict::Running => {
                if let (Some(pidfd), Trigger::Event) = (&state.pidfd, trigger) {
                    // A zombie cannot be reaped before its tracer has waited for it, and no watch
                    // reports when it can.
                    if self.shared.kernel.has_exited(pidfd) {
                        self.watch_again(pidfd, id, Until::Reaped);
                        self.registry.sweep_only.insert(id);
                    } else {
                        self.watch_again(pidfd, id, Until::Exited);
                    }
                }
            }
            Verdict::DeferToOwner(exit) => self.defer(&shim, state, phase, exit),
            Verdict::Reaped(exit) => {
                drop(state);
                self.shared.counters.add_reaped();
                self.finish(
                    &shim,
                    ShimExit {
                        pid: shim.pid,
                        status: Some(exit.status),
                        collected_by: CollectedBy::Reaper,
                        rusage: Some(exit.usage),
                    },
                );
            }
            Verdict::Vanished(status, collected_by) => {
                drop(state);
                self.shared.counters.add_vanished();
                self.finish(
                    &shim,
                    ShimExit {
                        pid: shim.pid,
                        status,
                        collected_by,
                        rusage: None,
                    },
                );
            }
        }
    }

    fn judge(
        &mut self,
        shim: &Shim<K::Pidfd>,
        state: &State<K::Pidfd>,
        phase: Phase,
        trigger: Trigger,
    ) -> Verdict {
        match (phase, state.role, &state.pidfd) {
            (Phase::NotFound, Role::Attached, _) => Verdict::Vanished(None, CollectedBy::Observed),
            (Phase::NotFound, ..) => Verdict::Vanished(None, CollectedBy::Owner),
            (_, Role::Attached, Some(pidfd)) => self.observe(shim.pid, pidfd, trigger),
            (_, Role::Attached, None) => self.observe_by_number(shim.pid, state),
            (_, role, Some(pidfd)) => self.wait(shim.pid, role, pidfd, phase, trigger),
            (_, _, None) => self.wait_by_number(shim, state, phase, trigger),
        }
    }

    fn owner_comes_first(&self, role: Role, trigger: Trigger) -> bool {
        role == Role::Shared
            && trigger != Trigger::GraceExpired
            && !self.shared.owner_grace.is_zero()
    }

    fn wait(
        &self,
        pid: u32,
        role: Role,
        pidfd: &K::Pidfd,
        phase: Phase,
        trigger: Trigger,
    ) -> Verdict {
        let kernel = &self.shared.kernel;
        let owner_first = self.owner_comes_first(role, trigger);
        let waited = if owner_first {
            kernel.peek(Target::Pidfd(pid, pidfd))
        } else {
            kernel.reap(Target::Pidfd(pid, pidfd))
        };
        match waited {
            WaitResult::Running => Verdict::Running,
            WaitResult::Exited(exit) if owner_first => Verdict::DeferToOwner(Some(exit)),
            WaitResult::Exited(exit) => Verdict::Reaped(exit),
            WaitResult::NotWaitable => {
                if role == Role::Owned {
                    self.shared.note_foreign_wait(pid);
                }
                self.judge_foreign_wait(pid, pidfd, phase, trigger)
            }
        }
    }

    /// Judges a process that cannot be waited for: a foreign wait has reaped it or is reaping it, or
    /// it is not a child of this process.
    fn judge_foreign_wait(
        &self,
        pid: u32,
        pidfd: &K::Pidfd,
        phase: Phase,
        trigger: Trigger,
    ) -> Verdict {
        let kernel = &self.shared.kernel;
        // In this order: the kernel publishes the status before it releases the process.
        let reaped = kernel.is_reaped(pidfd);
        let status = kernel.exit_status(pidfd);
        if reaped || status.is_some() {
            return Verdict::Vanished(status, CollectedBy::Owner);
        }
        // It is certainly alive only if it still has the pid that `stat` read.
        let alive = phase != Phase::Deferred
            && matches!(kernel.stat(pid), Ok(Some(ProcStat { exited: false, .. })))
            && !kernel.is_reaped(pidfd);
        match (alive, trigger) {
            (true, _) => Verdict::Vanished(None, CollectedBy::Observed),
            (false, Trigger::GraceExpired) => Verdict::Vanished(None, CollectedBy::Owner),
            (false, _) => Verdict::DeferToOwner(None),
        }
    }

    fn observe(&self, pid: u32, pidfd: &K::Pidfd, trigger: Trigger) -> Verdict {
        let kernel = &self.shared.kernel;
        let stat = kernel.stat(pid);
        // Checked after `stat`: if it is not reaped now, the pid was its own then.
        if kernel.is_reaped(pidfd) {
            return Verdict::Vanished(kernel.exit_status(pidfd), CollectedBy::Observed);
        }
        match stat {
            Ok(Some(stat)) if !stat.exited => Verdict::Running,
            Ok(Some(stat)) if stat.status.is_some() => {
                Verdict::Vanished(stat.status, CollectedBy::Observed)
            }
            Err(_) if trigger == Trigger::Sweep => Verdict::Running,
            _ if trigger == Trigger::GraceExpired => Verdict::Vanished(None, CollectedBy::Observed),
            _ => Verdict::DeferToOwner(None),
        }
    }

    fn wait_by_number(
        &mut self,
        shim: &Shim<K::Pidfd>,
        state: &State<K::Pidfd>,
        phase: Phase,
        trigger: Trigger,
    ) -> Verdict {
        let pid = shim.pid;
        let gone = Verdict::Vanished(None, CollectedBy::Owner);
        match self.shared.kernel.peek(Target::Pid(pid)) {
            WaitResult::NotWaitable if phase == Phase::Deferred => gone,
            WaitResult::NotWaitable => match self.shared.kernel.stat(pid) {
                Ok(Some(stat)) if is_same(state, &stat) && !stat.exited => {
                    Verdict::Vanished(None, CollectedBy::Observed)
                }
                _ => gone,
            },
            WaitResult::Running if self.is_due_for_comparison(shim.id) => {
                match self.shared.kernel.stat(pid) {
                    Ok(Some(stat)) if is_same(state, &stat) => Verdict::Running,
                    Err(_) => Verdict::Running,
                    Ok(_) => gone,
                }
            }
            WaitResult::Running => Verdict::Running,
            WaitResult::Exited(exit) => match self.shared.kernel.stat(pid) {
                Ok(Some(stat)) if !is_same(state, &stat) => gone,
                Ok(None) => gone,
                _ if self.owner_comes_first(state.role, trigger) => {
                    Verdict::DeferToOwner(Some(exit))
                }
                _ => match self.shared.kernel.reap(Target::Pid(pid)) {
                    WaitResult::Exited(exit) => Verdict::Reaped(exit),
                    WaitResult::Running | WaitResult::NotWaitable => gone,
                },
            },
        }
    }

    fn observe_by_number(&self, pid: u32, state: &State<K::Pidfd>) -> Verdict {
        match self.shared.kernel.stat(pid) {
            Ok(Some(stat)) if is_same(state, &stat) => {
                if stat.exited {
                    Verdict::Vanished(stat.status, CollectedBy::Observed)
                } else {
                    Verdict::Running
                }
            }
            Err(_) => Verdict::Running,
            Ok(_) => Verdict::Vanished(None, CollectedBy::Observed),
        }
    }

    fn is_due_for_comparison(&mut self, id: u64) -> bool {
        let pass = &mut self.registry.cursor;
        if id < pass.compare_from || pass.compared >= MAX_COMPARISONS_PER_SWEEP {
            return false;
        }
        pass.compared += 1;
        if pass.compared == MAX_COMPARISONS_PER_SWEEP {
            pass.compare_from = id + 1;
        }
        true
    }

    /// Starts the grace period of a dead shim. Its handles resolve if its status is known.
    fn defer(
        &mut self,
        shim: &Arc<Shim<K::Pidfd>>,
        mut state: MutexGuard<'_, State<K::Pidfd>>,
        phase: Phase,
        exit: Option<ChildExit>,
    ) {
        if let Some(exit) = exit {
            let exit = ShimExit {
                pid: shim.pid,
                status: Some(exit.status),
                collected_by: CollectedBy::Owner,
                rusage: Some(exit.usage),
            };
            self.outbox.resolve(&mut state, exit);
        }
        if let Some(pidfd) = &state.pidfd {
            self.watch_again(pidfd, shim.id, Until::Reaped);
        }
        drop(state);
        if phase == Phase::Deferred {
            return;
        }
        let grace = match exit {
            Some(_) => self.shared.owner_grace,
            None => self.shared.owner_grace.max(self.shared.sweep_interval),
        };
        let deadline = self.shared.kernel.now() + grace;
        self.registry.deferred.insert((deadline, shim.id));
        if let Some(tracked) = self.registry.shims.get_mut(&shim.id) {
            tracked.phase = Phase::Deferred;
        }
    }

    fn finish(&mut self, shim: &Arc<Shim<K::Pidfd>>, exit: ShimExit) {
        self.finished += 1;
        self.registry.shims.remove(&shim.id);
        self.registry.sweep_only.remove(&shim.id);
        if shim.leads_group {
            self.registry
                .orphaned_groups
                .insert(shim.pid, BTreeMap::new());
        }
        self.shared.directory.remove(shim);
        self.shared.counters.remove_registered();
        let mut state = shim.state();
        match state.pidfd.take() {
            Some(pidfd) => self.outbox.close(pidfd),
            None => self.shared.counters.remove_without_pidfd(),
        }
        self.outbox.resolve(&mut state, exit);
    }

    fn watch_again(&self, pidfd: &K::Pidfd, id: u64, until: Until) {
        if let Err(error) = self.shared.kernel.watch_again(pidfd, id, until) {
            tracing::debug!(%error, "cannot re-arm a watch; spot checks replace it");
        }
    }

    /// Opens the pidfd of a shim that was registered without one.
    fn try_to_watch(&mut self, id: u64) {
        if self.registry.cursor.pidfds_exhausted {
            return;
        }
        let Some(Entry {
            shim,
            phase: Phase::Alive,
        }) = self.registry.shims.get(&id)
        else {
            return;
        };
        let shim = Arc::clone(shim);
        let kernel = &self.shared.kernel;
        let mut state = shim.state();
        if state.pidfd.is_some() {
            return;
        }
        let before = match kernel.stat(shim.pid) {
            Ok(Some(stat)) if is_same(&state, &stat) => stat,
            Ok(_) => return,
            Err(_) => {
                self.registry.cursor.pidfds_exhausted = true;
                return;
            }
        };
        let pidfd = match kernel.open(shim.pid) {
            Ok(pidfd) => pidfd,
            Err(NoPidfd::NoProcess) => return,
            Err(NoPidfd::Exhausted(_) | NoPidfd::Unsupported) => {
                self.registry.cursor.pidfds_exhausted = true;
                return;
            }
        };
        // Compared again, because the pid may have been recycled before the pidfd was open.
        let still_same = match kernel.stat(shim.pid) {
            Ok(stat) => stat.is_some_and(|after| after.start_time == before.start_time),
            // The pidfd took the last descriptor.
            Err(_) => !matches!(
                kernel.peek(Target::Pidfd(shim.pid, &pidfd)),
                WaitResult::NotWaitable
            ),
        };
        if !still_same {
            return;
        }
        if kernel.watch(&pidfd, id).is_err() {
            self.registry.cursor.pidfds_exhausted = true;
            return;
        }
        state.pidfd = Some(pidfd);
        drop(state);
        self.registry.sweep_only.remove(&id);
        self.shared.counters.remove_without_pidfd();
        self.shared.note_pidfd_opened();
    }
}

/// Returns whether the start time is that of the registered process, if that is known.
fn is_same<P>(state: &State<P>, stat: &ProcStat) -> bool {
    state
        .start_time
        .is_none_or(|start| start == stat.start_time)
}

#[cfg(test)]
mod tests;
