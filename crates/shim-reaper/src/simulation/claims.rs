//! What exits and counters claim about the end of each process, compared with the history: its status,
//! and whose wait has reaped it.

use std::time::{Duration, Instant};

use super::config::long_grace;
use super::run::Simulation;
use super::world::{Adoption, Registration, World};
use crate::kernel::simulated::{Process, ProcessState, ReapedBy};
use crate::shim::Role;
use crate::{CollectedBy, ReaperCounter, ShimExit};

impl Simulation {
    /// Each registration resolves once, and truthfully.
    pub(super) fn check_exits(&self) {
        let mut world = self.world();
        let World {
            registrations,
            orphans,
            ..
        } = &mut *world;
        let mut found = None;
        for registration in registrations {
            let exit = registration.shim.state().exit();
            if exit == registration.exit {
                continue;
            }
            let process = registration
                .process
                .map(|index| self.kernel().process(index));
            if registration.exit.is_some() {
                found = Some(format!("{:?} became {exit:?}", registration.exit));
            }
            registration.exit = exit;
            let is_reaped_orphan = registration
                .process
                .is_some_and(|index| orphans.contains(&index));
            let check = |exit: ShimExit| {
                self.check_status(registration, &exit, process)?;
                registration.check_collector(&exit, process, is_reaped_orphan)
            };
            if let Some(Err(lie)) = exit.map(check) {
                let state = process.map(|process| (process.state, process.reaped_by));
                found = Some(format!("{exit:?}, but {lie}: {state:?}"));
            }
        }
        if let Some(found) = found {
            world.fail(found);
        }
    }

    fn check_status(
        &self,
        registration: &Registration,
        exit: &ShimExit,
        process: Option<Process>,
    ) -> Result<(), &'static str> {
        let Some(process) = process else {
            return match exit.status {
                Some(_) => Err("there was no such process"),
                None => Ok(()),
            };
        };
        if exit.status.is_some() {
            if exit.status != process.state.status() {
                return Err("that is not its status");
            }
            return Ok(());
        }
        match process.state {
            ProcessState::Running
                if registration.was_child || registration.role == Role::Attached =>
            {
                Err("it is running")
            }
            ProcessState::Running => Ok(()),
            _ if self.may_miss_status(registration, &process) => Ok(()),
            _ => Err("the kernel could report its status"),
        }
    }

    /// Returns whether the kernel may be unable to report the status of a dead process.
    fn may_miss_status(&self, registration: &Registration, process: &Process) -> bool {
        let kernel = self.kernel();
        let end = process.reaped_at.unwrap_or_else(|| kernel.time());
        let took = |begin: Option<Instant>| begin.map_or(Duration::ZERO, |begin| end - begin);
        let grace = self.config.grace;
        let is_slow_reap = process.reap_began_at.is_some() && took(process.reap_began_at) >= grace;
        let is_late_reap = took(process.died_at) >= long_grace(grace);
        // The final drain awaits neither.
        let was_slow = match (process.reap_began_at, process.inspectable) {
            (None, true) => false,
            _ if self.core.shared.is_closing() => true,
            (_, false) => is_slow_reap || is_late_reap,
            (Some(_), true) => is_slow_reap,
        };
        let is_kept = kernel.features().exit_info && registration.had_pidfd && !was_slow;
        let is_attached = registration.role == Role::Attached;
        // Without a free descriptor, procfs cannot be read.
        let can_read = process.inspectable && !self.config.exhausts_descriptors;
        match process.state {
            // Only the registration of an attached process could tell.
            _ if !is_attached && !registration.was_child => true,
            ProcessState::BeingReaped(_) if is_attached && !can_read => true,
            ProcessState::Reaped(_) if is_attached && self.config.exhausts_descriptors => true,
            ProcessState::Reaped(_) | ProcessState::BeingReaped(_) => !is_kept,
            _ => is_attached && !can_read,
        }
    }
    /// The counters of what has vanished show what the history has.
    pub(super) fn check_reasons(&self) {
        let stats = self.core.shared.counters.snapshot(true);
        // The final drain does not count the shims that it leaves.
        let has_counted_all = stats.registered == 0 && !self.core.shared.is_closing();
        let mut world = self.world();
        for (counter, count) in [
            (ReaperCounter::OwnerReaped, stats.owner_reaped_total),
            (ReaperCounter::Observed, stats.observed_total),
            (ReaperCounter::ForeignWaits, stats.foreign_waits_total),
            (ReaperCounter::Unknown, stats.unknown_total),
        ] {
            let (mut least, mut most) = (0, 0);
            for registration in &world.registrations {
                let ends = self.possible_ends(registration, &world);
                most += u64::from(ends.contains(&counter));
                least += u64::from(ends == [counter]);
            }
            if count > most || (has_counted_all && count < least) {
                world.fail(format!(
                    "{counter:?} is counted {count} times, but was {least} to {most} times"
                ));
                return;
            }
        }
    }

    /// Returns the counters that may count the end of a registration, if it has ended.
    fn possible_ends(
        &self,
        registration: &Registration,
        world: &World,
    ) -> &'static [ReaperCounter] {
        use ReaperCounter::{ForeignWaits, Observed, OwnerReaped, Reaped, Unknown};
        match registration.adoption {
            Some(Adoption::WaitedFor) => return &[OwnerReaped],
            Some(Adoption::Reaped) => return &[Reaped],
            Some(Adoption::Running) | None => {}
        }
        let role = registration.role;
        let Some(index) = registration.process else {
            return match role {
                Role::Owned => &[ForeignWaits],
                // Without a free descriptor, procfs cannot show that no process has the pid.
                Role::Shared if self.config.exhausts_descriptors => &[OwnerReaped, Unknown],
                Role::Attached if self.config.exhausts_descriptors => &[Observed, Unknown],
                Role::Shared | Role::Attached => &[Unknown],
            };
        };
        let process = self.kernel().process(index);
        let is_late = registration.is_late(&process);
        let by_reaper =
            process.reaped_by == Some(ReapedBy::Reaper) && !world.orphans.contains(&index);
        // Without a free descriptor, the reaper cannot tell that it has registered a process before.
        let is_one_of_two = by_reaper
            && self.config.exhausts_descriptors
            && world.registrations_of(index).count() > 1;
        match (role, process.state) {
            (Role::Attached, ProcessState::Running) => &[],
            (Role::Attached, _) if is_late => &[Observed, Unknown],
            (Role::Attached, _) => &[Observed],
            // It may become a child later.
            (Role::Shared, _) if !registration.was_child => &[Reaped, OwnerReaped, Unknown],
            (_, ProcessState::Running | ProcessState::Zombie(_) | ProcessState::Traced(_)) => &[],
            (Role::Shared, _) if is_late => &[Reaped, OwnerReaped, Unknown],
            (Role::Shared, _) if is_one_of_two => &[Reaped, OwnerReaped],
            (Role::Owned, _) if is_one_of_two => &[Reaped, ForeignWaits],
            (Role::Owned, _) if is_late && registration.adoption.is_some() => {
                &[Reaped, ForeignWaits]
            }
            _ if by_reaper => &[Reaped],
            (Role::Owned, _) => &[ForeignWaits],
            (Role::Shared, _) => &[OwnerReaped],
        }
    }
}

impl Registration {
    /// Returns whether the process may have been reaped before the registration.
    fn is_late(&self, process: &Process) -> bool {
        process.reaped_at.is_some_and(|at| at <= self.at)
    }

    /// The wait that an exit names is the one that has reaped the process, or may still reap it.
    fn check_collector(
        &self,
        exit: &ShimExit,
        process: Option<Process>,
        is_orphan: bool,
    ) -> Result<(), &'static str> {
        let is_late = process.is_none_or(|process| self.is_late(&process));
        let by_reaper =
            !is_orphan && process.is_some_and(|one| one.reaped_by == Some(ReapedBy::Reaper));
        let is_owned = self.role == Role::Owned;
        let is_attached = self.role == Role::Attached;
        let is_true = match exit.collected_by {
            CollectedBy::Reaper => exit.status.is_some() && by_reaper,
            // Its wait may follow, and is that of the reaper after the grace period.
            CollectedBy::Owner => self.was_shared || self.adoption == Some(Adoption::WaitedFor),
            // The reaper may have reaped it for an earlier registration.
            CollectedBy::ForeignWait => {
                is_owned && (!by_reaper || (is_late && self.adoption.is_some()))
            }
            CollectedBy::Observed => is_attached || !self.was_child,
            CollectedBy::Unknown => {
                let was_traced = process.is_some_and(|process| process.was_traced);
                (is_owned && was_traced) || (is_attached && is_late)
            }
        };
        if is_true {
            Ok(())
        } else {
            Err("that was another wait")
        }
    }
}
