use std::collections::BTreeMap;
use std::mem;
use std::process::ExitStatus;
use std::sync::{Arc, MutexGuard};

use crate::directory::News;
use crate::effects::Effects;
use crate::failpoint::fail_point;
use crate::intake::Intake;
use crate::kernel::{Death, NoPidfd, ProcStat, ProcessTable, READY_AT_ONCE, Target, Until, Waited};
use crate::registry::{Pass, Phase, Registry, Tracked};
use crate::shim::{Role, Shim, State};
use crate::{CollectedBy, ShimExit, ShutdownReport};

/// How many shims without a pidfd a slice looks at before it gives up the lock and the thread.
const SLICE: usize = 256;

/// How many watched shims an interval sweep looks at although the kernel reported nothing.
const SPOT_CHECKS: usize = 8;

/// How many identities of living shims without a pidfd an interval sweep compares; reading one
/// from procfs costs twenty times as much as asking whether the child has exited.
const COMPARISONS: usize = 512;

/// One slice of a sweep: decides what has become of registered shims, and sees to it.
#[derive(Debug)]
pub(crate) struct Sweep<'a, 'b, K: ProcessTable> {
    intake: &'a Intake<K>,
    registry: &'a mut Registry<K::Pidfd>,
    effects: &'a mut Effects<'b, K::Pidfd>,
    finished: u64,
}

/// Whether a slice has left work to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slice {
    More,
    Done,
}

/// Why a shim is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Its watch has reported, and is spent.
    Reported,
    Checked,
    /// Nobody else is waited for any longer.
    Overdue,
}

/// What has become of a shim.
#[derive(Debug)]
enum Verdict {
    Running,
    /// Dead. Somebody else may still collect it, or the kernel is about to tell how it ended.
    Left(Option<Death>),
    Reaped(Death),
    Vanished(Option<ExitStatus>, CollectedBy),
}

impl<'a, 'b, K: ProcessTable> Sweep<'a, 'b, K> {
    pub(crate) fn new(
        intake: &'a Intake<K>,
        registry: &'a mut Registry<K::Pidfd>,
        effects: &'a mut Effects<'b, K::Pidfd>,
    ) -> Self {
        Self {
            intake,
            registry,
            effects,
            finished: 0,
        }
    }

    /// Settles what the kernel has reported, what registering found out, and what is overdue.
    pub(crate) fn collect(&mut self) -> Slice {
        if self.registry.closed.is_some() {
            return Slice::Done;
        }
        fail_point!("shim_reaper::collect");
        // Whatever made an earlier slice panic comes last, so that it delays nobody else.
        let suspect = self.registry.in_flight.take();
        let reported = self.take_ready();
        // In this order: a shim is announced to the directory before its watch can report it.
        self.admit();
        self.registry.ready.extend(suspect);
        self.examine_ready();
        self.collect_overdue();
        if reported == READY_AT_ONCE {
            Slice::More
        } else {
            Slice::Done
        }
    }

    pub(crate) fn begin_pass(&mut self) {
        self.admit();
        let compare_from = self.registry.pass.compare_from;
        self.registry.pass = Pass {
            compare_from,
            ..Pass::default()
        };
    }

    /// The part of an interval sweep that no readiness event stands for.
    pub(crate) fn pass(&mut self) -> Slice {
        if self.registry.closed.is_some() {
            return Slice::Done;
        }
        fail_point!("shim_reaper::pass");
        let next = self.registry.pass.next;
        let ids: Vec<u64> = self
            .registry
            .unwatched
            .range(next..)
            .take(SLICE)
            .copied()
            .collect();
        for id in &ids {
            self.registry.pass.next = id + 1;
            self.try_to_watch(*id);
            self.examine(*id, Cause::Checked);
        }
        if ids.len() == SLICE {
            return Slice::More;
        }
        self.end_pass();
        Slice::Done
    }

    fn end_pass(&mut self) {
        if self.registry.pass.compared < COMPARISONS {
            self.registry.pass.compare_from = 0;
        }
        self.spot_check();
        self.reap_orphans();
        self.intake.counters.swept();
    }

    /// Settles all that has ended, leaves nothing to anybody, and lets go of the rest.
    pub(crate) fn close(&mut self) -> ShutdownReport {
        if let Some(report) = &self.registry.closed {
            return report.clone();
        }
        let suspect = self.registry.in_flight.take();
        while self.take_ready() > 0 {}
        self.admit();
        self.registry.ready.extend(suspect);
        self.examine_ready();
        for id in mem::take(&mut self.registry.unwatched) {
            self.examine(id, Cause::Overdue);
        }
        for (_, id) in mem::take(&mut self.registry.left) {
            self.examine(id, Cause::Overdue);
        }
        self.reap_orphans();
        self.registry.orphaned_groups.clear();
        let abandoned = mem::take(&mut self.registry.tracked);
        let mut still_running = Vec::new();
        for tracked in abandoned.values() {
            let mut state = tracked.shim.state();
            if state.close(&mut self.effects.wakers) {
                still_running.push(tracked.shim.pid);
            }
            let without_pidfd = state.pidfd.is_none();
            drop(state);
            self.intake.counters.unregistered();
            if without_pidfd {
                self.intake.counters.no_longer_without_pidfd();
            }
            self.intake.directory.remove(&tracked.shim);
        }
        // Nothing resolves a shim any more: the registry, which is locked, knows none.
        self.intake.subscribers.close(&mut self.effects.wakers);
        still_running.sort_unstable();
        let report = ShutdownReport {
            drained: self.finished,
            still_running,
        };
        self.registry.closed = Some(report.clone());
        report
    }

    fn take_ready(&mut self) -> usize {
        self.intake
            .kernel
            .ready(&mut self.registry.ready)
            .inspect_err(|error| tracing::debug!(%error, "no reports from the kernel"))
            .unwrap_or(0)
    }

    fn admit(&mut self) {
        for arrival in self.intake.directory.take_arrivals() {
            let (shim, news) = (arrival.shim, arrival.news);
            let id = shim.id;
            if news != News::Quiet {
                self.registry.ready.push_back(id);
            }
            // One that is recalled is tracked already, or finished by now.
            if news == News::Recalled {
                continue;
            }
            if shim.state().pidfd.is_none() {
                self.registry.unwatched.insert(id);
            }
            let phase = match news {
                News::Absent => Phase::Absent,
                _ => Phase::Alive,
            };
            self.registry.tracked.insert(id, Tracked { shim, phase });
        }
    }

    fn examine_ready(&mut self) {
        while let Some(id) = self.registry.ready.pop_front() {
            self.registry.in_flight = Some(id);
            self.examine(id, Cause::Reported);
            self.registry.in_flight = None;
        }
    }

    fn collect_overdue(&mut self) {
        if self.registry.left.is_empty() {
            return;
        }
        let now = self.intake.kernel.now();
        while let Some((deadline, id)) = self.registry.left.first().copied() {
            if deadline > now {
                break;
            }
            // Kept on the list meanwhile, for its turn to come again should this one panic.
            let again = (now + self.intake.sweep_interval, id);
            self.registry.left.remove(&(deadline, id));
            self.registry.left.insert(again);
            self.examine(id, Cause::Overdue);
            self.registry.left.remove(&again);
        }
    }

    /// A few watched shims in turn, in case the kernel failed to report one.
    fn spot_check(&mut self) {
        let from = self.registry.spot_check_from;
        let ids: Vec<u64> = self
            .registry
            .tracked
            .range(from..)
            .take(SPOT_CHECKS)
            .map(|(id, _)| *id)
            .collect();
        self.registry.spot_check_from = match ids.last() {
            Some(last) if ids.len() == SPOT_CHECKS => last + 1,
            _ => 0,
        };
        for id in ids {
            self.examine(id, Cause::Checked);
        }
    }

    /// Reaps what has died in the groups of reaped shims and is registered nowhere, unless an owner
    /// does so within the grace period: it may be a child of the embedder's.
    fn reap_orphans(&mut self) {
        let kernel = &self.intake.kernel;
        let now = kernel.now();
        let deadline = now + self.intake.owner_grace.max(self.intake.sweep_interval);
        self.registry.orphaned_groups.retain(|pgid, known| {
            // Asked first: the number may lead another group by now.
            if !kernel.group_exists(*pgid) {
                return false;
            }
            let found = kernel.dead_orphans(*pgid).into_iter();
            *known = found
                .map(|orphan| (orphan, known.get(&orphan).copied().unwrap_or(deadline)))
                .collect();
            for (orphan, _) in known.iter().filter(|(_, deadline)| **deadline <= now) {
                // Locked until it is reaped, so that it is not registered meanwhile.
                let entries = self.intake.directory.lock();
                if entries.get(orphan.pid).is_none() && kernel.reap_orphan(*orphan) {
                    self.intake.counters.orphan_reaped();
                }
            }
            true
        });
    }

    fn examine(&mut self, id: u64, cause: Cause) {
        let Some(tracked) = self.registry.tracked.get(&id) else {
            return;
        };
        let shim = Arc::clone(&tracked.shim);
        let phase = tracked.phase;
        fail_point!("shim_reaper::examine");
        let state = shim.state();
        match self.judge(&shim, &state, phase, cause) {
            Verdict::Running => {
                if let (Some(pidfd), Cause::Reported) = (&state.pidfd, cause) {
                    // A tracer that has not waited keeps a zombie from us, and no watch reports
                    // when that tracer is gone.
                    if self.intake.kernel.has_exited(pidfd) {
                        self.watch_again(pidfd, id, Until::Reaped);
                        self.registry.unwatched.insert(id);
                    } else {
                        self.watch_again(pidfd, id, Until::Exited);
                    }
                }
            }
            Verdict::Left(death) => self.leave(&shim, state, phase, death),
            Verdict::Reaped(death) => {
                drop(state);
                self.intake.counters.reaped();
                self.finish(
                    &shim,
                    ShimExit {
                        pid: shim.pid,
                        status: Some(death.status),
                        collected_by: CollectedBy::Reaper,
                        rusage: Some(death.usage),
                    },
                );
            }
            Verdict::Vanished(status, collected_by) => {
                drop(state);
                self.intake.counters.vanished();
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
        cause: Cause,
    ) -> Verdict {
        match (phase, state.role, &state.pidfd) {
            (Phase::Absent, Role::Attached, _) => Verdict::Vanished(None, CollectedBy::Observed),
            (Phase::Absent, ..) => Verdict::Vanished(None, CollectedBy::Owner),
            (_, Role::Attached, Some(pidfd)) => self.observe(shim.pid, pidfd, cause),
            (_, Role::Attached, None) => self.observe_by_number(shim.pid, state),
            (_, role, Some(pidfd)) => self.wait(shim.pid, role, pidfd, phase, cause),
            (_, _, None) => self.wait_by_number(shim, state, phase, cause),
        }
    }

    fn owner_comes_first(&self, role: Role, cause: Cause) -> bool {
        role == Role::Shared && cause != Cause::Overdue && !self.intake.owner_grace.is_zero()
    }

    fn wait(&self, pid: u32, role: Role, pidfd: &K::Pidfd, phase: Phase, cause: Cause) -> Verdict {
        let kernel = &self.intake.kernel;
        let left_to_owner = self.owner_comes_first(role, cause);
        let waited = if left_to_owner {
            kernel.peek(Target::Pidfd(pid, pidfd))
        } else {
            kernel.reap(Target::Pidfd(pid, pidfd))
        };
        match waited {
            Waited::Running => Verdict::Running,
            Waited::Exited(death) if left_to_owner => Verdict::Left(Some(death)),
            Waited::Exited(death) => Verdict::Reaped(death),
            Waited::NotOurs => {
                if role == Role::Owned {
                    self.intake.note_robbery(pid);
                }
                self.missed(pid, pidfd, phase, cause)
            }
        }
    }

    /// Somebody else has collected it, or is just doing so, or it never was a child of ours.
    fn missed(&self, pid: u32, pidfd: &K::Pidfd, phase: Phase, cause: Cause) -> Verdict {
        let kernel = &self.intake.kernel;
        // In this order: the kernel publishes the status before it lets go of the process.
        let reaped = kernel.is_reaped(pidfd);
        let status = kernel.exit_status(pidfd);
        if reaped || status.is_some() {
            return Verdict::Vanished(status, CollectedBy::Owner);
        }
        // Alive for sure only if it still has the number that was looked up.
        let alive = phase != Phase::Left
            && matches!(kernel.stat(pid), Ok(Some(ProcStat { exited: false, .. })))
            && !kernel.is_reaped(pidfd);
        match (alive, cause) {
            (true, _) => Verdict::Vanished(None, CollectedBy::Observed),
            (false, Cause::Overdue) => Verdict::Vanished(None, CollectedBy::Owner),
            (false, _) => Verdict::Left(None),
        }
    }

    fn observe(&self, pid: u32, pidfd: &K::Pidfd, cause: Cause) -> Verdict {
        let kernel = &self.intake.kernel;
        let stat = kernel.stat(pid);
        // Asked after reading by number: not reaped now means that the number was its own then.
        if kernel.is_reaped(pidfd) {
            return Verdict::Vanished(kernel.exit_status(pidfd), CollectedBy::Observed);
        }
        match stat {
            Ok(Some(stat)) if !stat.exited => Verdict::Running,
            Ok(Some(stat)) if stat.status.is_some() => {
                Verdict::Vanished(stat.status, CollectedBy::Observed)
            }
            Err(_) if cause == Cause::Checked => Verdict::Running,
            _ if cause == Cause::Overdue => Verdict::Vanished(None, CollectedBy::Observed),
            _ => Verdict::Left(None),
        }
    }

    fn wait_by_number(
        &mut self,
        shim: &Shim<K::Pidfd>,
        state: &State<K::Pidfd>,
        phase: Phase,
        cause: Cause,
    ) -> Verdict {
        let pid = shim.pid;
        let gone = Verdict::Vanished(None, CollectedBy::Owner);
        match self.intake.kernel.peek(Target::Pid(pid)) {
            Waited::NotOurs if phase == Phase::Left => gone,
            Waited::NotOurs => match self.intake.kernel.stat(pid) {
                Ok(Some(stat)) if is_same(state, &stat) && !stat.exited => {
                    Verdict::Vanished(None, CollectedBy::Observed)
                }
                _ => gone,
            },
            Waited::Running if self.is_due_for_comparison(shim.id) => {
                match self.intake.kernel.stat(pid) {
                    Ok(Some(stat)) if is_same(state, &stat) => Verdict::Running,
                    Err(_) => Verdict::Running,
                    Ok(_) => gone,
                }
            }
            Waited::Running => Verdict::Running,
            Waited::Exited(death) => match self.intake.kernel.stat(pid) {
                Ok(Some(stat)) if !is_same(state, &stat) => gone,
                Ok(None) => gone,
                _ if self.owner_comes_first(state.role, cause) => Verdict::Left(Some(death)),
                _ => match self.intake.kernel.reap(Target::Pid(pid)) {
                    Waited::Exited(death) => Verdict::Reaped(death),
                    Waited::Running | Waited::NotOurs => gone,
                },
            },
        }
    }

    fn observe_by_number(&self, pid: u32, state: &State<K::Pidfd>) -> Verdict {
        match self.intake.kernel.stat(pid) {
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
        let pass = &mut self.registry.pass;
        if id < pass.compare_from || pass.compared >= COMPARISONS {
            return false;
        }
        pass.compared += 1;
        if pass.compared == COMPARISONS {
            pass.compare_from = id + 1;
        }
        true
    }

    /// Leaves a zombie to others for a while. Its handles learn what is known already.
    fn leave(
        &mut self,
        shim: &Arc<Shim<K::Pidfd>>,
        mut state: MutexGuard<'_, State<K::Pidfd>>,
        phase: Phase,
        death: Option<Death>,
    ) {
        if let Some(death) = death {
            let exit = ShimExit {
                pid: shim.pid,
                status: Some(death.status),
                collected_by: CollectedBy::Owner,
                rusage: Some(death.usage),
            };
            self.effects.resolve(&mut state, exit);
        }
        if let Some(pidfd) = &state.pidfd {
            self.watch_again(pidfd, shim.id, Until::Reaped);
        }
        drop(state);
        if phase == Phase::Left {
            return;
        }
        let patience = match death {
            Some(_) => self.intake.owner_grace,
            None => self.intake.owner_grace.max(self.intake.sweep_interval),
        };
        let deadline = self.intake.kernel.now() + patience;
        self.registry.left.insert((deadline, shim.id));
        if let Some(tracked) = self.registry.tracked.get_mut(&shim.id) {
            tracked.phase = Phase::Left;
        }
    }

    fn finish(&mut self, shim: &Arc<Shim<K::Pidfd>>, exit: ShimExit) {
        self.finished += 1;
        self.registry.tracked.remove(&shim.id);
        self.registry.unwatched.remove(&shim.id);
        if shim.leads_group {
            self.registry
                .orphaned_groups
                .insert(shim.pid, BTreeMap::new());
        }
        self.intake.directory.remove(shim);
        self.intake.counters.unregistered();
        let mut state = shim.state();
        match state.pidfd.take() {
            Some(pidfd) => self.effects.close(pidfd),
            None => self.intake.counters.no_longer_without_pidfd(),
        }
        self.effects.resolve(&mut state, exit);
    }

    fn watch_again(&self, pidfd: &K::Pidfd, id: u64, until: Until) {
        if let Err(error) = self.intake.kernel.watch_again(pidfd, id, until) {
            tracing::debug!(%error, "a watch could not be armed again; left to spot checks");
        }
    }

    /// Opens the pidfd that registering could not open.
    fn try_to_watch(&mut self, id: u64) {
        if self.registry.pass.exhausted {
            return;
        }
        let Some(Tracked {
            shim,
            phase: Phase::Alive,
        }) = self.registry.tracked.get(&id)
        else {
            return;
        };
        let shim = Arc::clone(shim);
        let kernel = &self.intake.kernel;
        let mut state = shim.state();
        if state.pidfd.is_some() {
            return;
        }
        let before = match kernel.stat(shim.pid) {
            Ok(Some(stat)) if is_same(&state, &stat) => stat,
            Ok(_) => return,
            Err(_) => {
                self.registry.pass.exhausted = true;
                return;
            }
        };
        let pidfd = match kernel.open(shim.pid) {
            Ok(pidfd) => pidfd,
            Err(NoPidfd::NoProcess) => return,
            Err(NoPidfd::Exhausted(_) | NoPidfd::Unsupported) => {
                self.registry.pass.exhausted = true;
                return;
            }
        };
        // Compared again, because the number may have changed hands before the pidfd was open.
        let still_same = match kernel.stat(shim.pid) {
            Ok(stat) => stat.is_some_and(|after| after.start_time == before.start_time),
            // That pidfd took the last descriptor.
            Err(_) => !matches!(
                kernel.peek(Target::Pidfd(shim.pid, &pidfd)),
                Waited::NotOurs
            ),
        };
        if !still_same {
            return;
        }
        if kernel.watch(&pidfd, id).is_err() {
            self.registry.pass.exhausted = true;
            return;
        }
        state.pidfd = Some(pidfd);
        drop(state);
        self.registry.unwatched.remove(&id);
        self.intake.counters.no_longer_without_pidfd();
        self.intake.pidfd_found();
    }
}

/// Whether this process is the one that was registered, as far as its start time can tell.
fn is_same<P>(state: &State<P>, stat: &ProcStat) -> bool {
    state
        .start_time
        .is_none_or(|start| start == stat.start_time)
}

#[cfg(test)]
mod tests;
