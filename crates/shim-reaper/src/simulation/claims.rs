//! What exits and counters claim about the end of each process, compared with the history: its status,
//! and whose wait has reaped it.

use std::time::{Duration, Instant};

use super::config::long_grace;
use super::run::Simulation;
use super::world::{Adoption, Registration, World};
use crate::kernel::simulated::{Process, ProcessState, WaitBy};
use crate::shim::Role;
use crate::sweep::drain::FOREIGN_WAIT_TIMEOUT;
use crate::{ReapedBy, ReaperCounter, ShimExit};

impl Simulation {
    /// Each registration resolves once, and truthfully.
    pub(super) fn check_exits(&self) {
        let mut world = self.world();
        for number in 0..world.registrations.len() {
            let registration = &world.registrations[number];
            let exit = registration.shim.state().exit();
            if exit == registration.exit {
                continue;
            }
            let truth = self.truth(registration, &world);
            let mut found = registration
                .exit
                .map(|before| format!("{before:?} became {exit:?}"));
            let check = |exit: ShimExit| {
                self.check_status(registration, &exit, truth.process)?;
                registration.check_wait(&exit, &truth)
            };
            if let Some(Err(lie)) = exit.map(check) {
                let state = truth.process.map(|one| (one.state, one.reaped_by));
                found = Some(format!("{exit:?}, but {lie}: {state:?}"));
            }
            world.registrations[number].exit = exit;
            if let Some(found) = found {
                world.fail(found);
            }
        }
    }

    fn truth(&self, registration: &Registration, world: &World) -> Truth {
        let process = registration
            .process
            .map(|index| self.kernel().process(index));
        let index = registration.process.unwrap_or(usize::MAX);
        let by_reaper = process.is_some_and(|one| one.reaped_by == Some(WaitBy::Reaper))
            && !world.orphans.contains(&index);
        let is_late =
            process.is_none_or(|one| one.reaped_at.is_some_and(|at| at <= registration.at));
        // Without a free descriptor, the reaper cannot know that it has registered a process before.
        let has_another =
            || self.config.exhausts_descriptors && world.registrations_of(index).count() > 1;
        let was_adopted_late = is_late && registration.adoption.is_some();
        Truth {
            process,
            is_late,
            by_reaper,
            is_for_another: by_reaper && (was_adopted_late || has_another()),
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
        let is_closing = self.core.shared.is_closing();
        // The final drain awaits foreign waits in progress, and not for the grace.
        let longest_reap = if is_closing {
            grace.min(FOREIGN_WAIT_TIMEOUT)
        } else {
            grace
        };
        let is_slow_reap =
            process.reap_began_at.is_some() && took(process.reap_began_at) >= longest_reap;
        let is_late_reap = is_closing || took(process.died_at) >= long_grace(grace);
        let was_slow = match (process.reap_began_at, process.inspectable) {
            (None, true) => false,
            (_, false) => is_slow_reap || is_late_reap,
            (Some(_), true) => is_slow_reap,
        };
        let is_kept = kernel.features().exit_info && registration.had_pidfd && !was_slow;
        let is_attached = registration.role == Role::Attached;
        // Without a free descriptor, procfs cannot be read.
        let can_read = process.inspectable && !self.config.exhausts_descriptors;
        match process.state {
            // Only the registration of an attached process could show the status.
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
        let ends = world.registrations.iter();
        let ends: Vec<_> = ends.map(|one| self.possible_ends(one, &world)).collect();
        for (counter, count) in [
            (ReaperCounter::OwnerReaped, stats.owner_reaped_total),
            (ReaperCounter::Observed, stats.observed_total),
            (ReaperCounter::ForeignWaits, stats.foreign_waits_total),
            (ReaperCounter::Unknown, stats.unknown_total),
        ] {
            let least = ends.iter().filter(|ends| **ends == [counter]).count() as u64;
            let most = ends.iter().filter(|ends| ends.contains(&counter)).count() as u64;
            if count > most || (has_counted_all && count < least) {
                world.fail(format!(
                    "{counter:?} is counted {count} times, but was {least} to {most} times"
                ));
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
        let truth = self.truth(registration, world);
        let Some(process) = truth.process else {
            return match role {
                Role::Owned => &[ForeignWaits],
                // Without a free descriptor, procfs cannot show that no process has the pid.
                Role::Shared if self.config.exhausts_descriptors => &[OwnerReaped, Unknown],
                Role::Attached if self.config.exhausts_descriptors => &[Observed, Unknown],
                Role::Shared | Role::Attached => &[Unknown],
            };
        };
        let Truth {
            is_late,
            by_reaper,
            is_for_another,
            ..
        } = truth;
        match (role, process.state) {
            (Role::Attached, ProcessState::Running) => &[],
            (Role::Attached, _) if is_late => &[Observed, Unknown],
            (Role::Attached, _) => &[Observed],
            // It may become a child later.
            (Role::Shared, _) if !registration.was_child => &[Reaped, OwnerReaped, Unknown],
            (_, ProcessState::Running | ProcessState::Zombie(_) | ProcessState::Traced(_)) => &[],
            (Role::Shared, _) if is_late => &[Reaped, OwnerReaped, Unknown],
            (Role::Shared, _) if is_for_another => &[Reaped, OwnerReaped],
            (Role::Owned, _) if is_for_another => &[Reaped, ForeignWaits],
            _ if by_reaper => &[Reaped],
            (Role::Owned, _) => &[ForeignWaits],
            (Role::Shared, _) => &[OwnerReaped],
        }
    }
}

/// What the history has of the process of a registration.
#[derive(Debug)]
struct Truth {
    process: Option<Process>,
    /// Whether the process may have been reaped before the registration.
    is_late: bool,
    /// Whether the reaper has reaped it, and not as an orphan.
    by_reaper: bool,
    /// Whether that may have been for another registration of the same process.
    is_for_another: bool,
}

impl Registration {
    /// The wait that an exit names is the one that has reaped the process, or may still reap it.
    fn check_wait(&self, exit: &ShimExit, truth: &Truth) -> Result<(), &'static str> {
        let Truth {
            process, by_reaper, ..
        } = *truth;
        let is_owned = self.role == Role::Owned;
        let is_attached = self.role == Role::Attached;
        let is_true = match exit.reaped_by {
            ReapedBy::Reaper => exit.status.is_some() && by_reaper,
            // Its wait may follow, and is that of the reaper after the grace period.
            ReapedBy::Owner => self.was_shared || self.adoption == Some(Adoption::WaitedFor),
            ReapedBy::ForeignWait => is_owned && (!by_reaper || truth.is_for_another),
            ReapedBy::Observed => is_attached || !self.was_child,
            ReapedBy::Unknown => {
                let was_traced = process.is_some_and(|process| process.was_traced);
                (is_owned && was_traced) || (is_attached && truth.is_late)
            }
        };
        if is_true {
            Ok(())
        } else {
            Err("that was another wait")
        }
    }
}
