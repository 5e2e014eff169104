//! How late the reaper may be, and when everything that is due must have happened.

use std::time::{Duration, Instant};

use super::config::{Config, Disturbances, INTERVAL, long_grace};
use super::run::Simulation;
use super::world::Registration;
use crate::kernel::simulated::{Parent, Process, ProcessState, WaitBy};
use crate::registry::Registry;
use crate::shim::Role;

/// The precision of the timers of tokio, and of the simulation.
const TIMER_PRECISION: Duration = Duration::from_millis(2);

/// The largest part of the registered shims that one interval sweep leaves to the next ones.
const SPOT_CHECKS_PER_SWEEP: u32 = 8;

impl Config {
    /// Returns whether the kernel reports every exit to the reaper at once.
    pub(super) fn is_prompt(&self) -> bool {
        self.features.pidfds
            && self.disturbances != Disturbances::Lossy
            && !self.panics
            && !self.exhausts_descriptors
    }

    /// Returns for how long a zombie may be waitable before the reaper reaps it.
    fn max_age(&self, role: Role) -> Duration {
        let grace = match role {
            Role::Shared => self.grace,
            Role::Attached | Role::Owned => Duration::ZERO,
        };
        INTERVAL + grace + self.max_lost() + 2 * TIMER_PRECISION
    }

    /// Returns how long the exit of a process whose event is lost may stay unnoticed.
    pub(super) fn max_lost(&self) -> Duration {
        if self.disturbances == Disturbances::Lossy {
            // Until all others had their turn of the spot checks.
            (self.crowd / SPOT_CHECKS_PER_SWEEP + 5) * INTERVAL
        } else {
            Duration::ZERO
        }
    }

    /// Returns how long everything takes that is due, in the worst case.
    pub(super) fn max_delay(&self) -> Duration {
        // The longest backoff after a panic is 32 intervals.
        36 * INTERVAL + 3 * long_grace(self.grace) + self.max_age(Role::Shared)
    }
}

impl Simulation {
    pub(super) fn note_panic(&self) {
        let sweeps = self.core.shared.counters.snapshot(true).sweeps_completed;
        let mut world = self.world();
        world.panics += 1;
        if world.sweeps_at_panic != sweeps {
            world.recent_panics = 0;
        }
        world.recent_panics += 1;
        world.sweeps_at_panic = sweeps;
        // The worker restarts at once after the first panic.
        let backoff = match world.recent_panics {
            1 => 0,
            count => 1 << (count - 2).min(5),
        };
        drop(world);
        self.expect_delay((1 + backoff) * INTERVAL);
    }

    /// No zombie is older than one interval and its grace period.
    pub(super) fn check_zombies(&self) {
        let kernel = self.kernel();
        let now = kernel.time();
        let mut world = self.world();
        let is_late = self.core.shared.is_closing() || now <= world.late_until;
        if is_late || world.lacks_worker {
            return;
        }
        if kernel.is_epoll_unregistered() {
            world.fail("the epoll is not registered again".into());
        }
        let old = world.registrations.iter().find_map(|registration| {
            let process = kernel.process(registration.process?);
            if !registration.is_for_zombie(&process) {
                return None;
            }
            let since = process.died_at?.max(registration.at);
            let is_old = now > since + self.config.max_age(registration.role);
            is_old.then(|| format!("pid {} is a zombie since {:?}", process.pid, now - since))
        });
        if let Some(old) = old {
            world.fail(old);
        }
    }

    /// What the kernel reports is noticed at once.
    pub(super) fn check_promptness(&self) {
        let kernel = self.kernel();
        let now = kernel.time();
        let mut world = self.world();
        let is_late = self.core.shared.is_closing() || now <= world.late_until;
        let is_late = is_late || world.lacks_worker;
        if is_late || !self.config.is_prompt() {
            return;
        }
        let unnoticed = world.registrations.iter().find_map(|registration| {
            let process = registration.process.map(|index| kernel.process(index));
            let due = registration.due(process.as_ref(), self.config)?;
            let is_late = now > due.at.max(registration.at) + due.delay + TIMER_PRECISION;
            is_late.then(|| format!("pid {}: {}", registration.shim.pid, due.event))
        });
        if let Some(unnoticed) = unnoticed {
            world.fail(format!("not noticed at once: {unnoticed}"));
        }
    }

    /// Returns what is due and has not happened yet.
    pub(super) fn unsettled(&self) -> Option<String> {
        let kernel = self.kernel();
        let stats = self.core.shared.counters.snapshot(true);
        let mut alive = Vec::new();
        for registration in &self.world().registrations {
            let process = registration.process.map(|index| kernel.process(index));
            let runs = process.is_some_and(|process| process.state.is_running());
            let is_zombie = process.is_some_and(|process| registration.is_for_zombie(&process));
            let pid = registration.shim.pid;
            if !runs && (registration.exit.is_none() || is_zombie) {
                return Some(format!("the exit of {pid} is not noticed"));
            }
            if runs && registration.exit.is_none() {
                alive.push(pid);
            }
        }
        alive.sort_unstable();
        let is_miscounted = stats.registered != alive.len() as u64;
        // Without its identity, a process may be registered again when it is adopted.
        alive.dedup();
        let registered = self.core.shared.directory.pids();
        if registered != alive || is_miscounted {
            let count = stats.registered;
            return Some(format!("{registered:?} and {count} in place of {alive:?}"));
        }
        if stats.without_pidfd > 0 && self.config.features.pidfds {
            return Some(format!("{} shims have no pidfd", stats.without_pidfd));
        }
        let orphan = self.dead_orphan()?;
        Some(format!("the orphan {orphan} is not reaped"))
    }

    /// Returns a zombie that is left in the group of a shim that has ended.
    fn dead_orphan(&self) -> Option<u32> {
        let kernel = self.kernel();
        let processes = || (0..kernel.process_count()).map(|index| kernel.process(index));
        let is_orphan = |process: &Process| {
            matches!(process.state, ProcessState::Zombie(_)) && process.parent == Parent::This
        };
        let has_ended = |pgid: u32| {
            let leaders = processes().filter(|one| one.pid == pgid && one.group == Some(pgid));
            // While a wait for the leader is in progress, the group looks like a recycled one.
            let is_ended =
                |leader: Process| leader.state.is_reaped() && leader.reap_began_at.is_none();
            leaders.last().is_some_and(is_ended)
        };
        let is_searched = |process: &Process| {
            if self.config.reaps_all_orphans && kernel.features().subreaper {
                return !process.forked_by_thread;
            }
            let leads_group = process.group == Some(process.pid);
            !leads_group && process.group.is_some_and(has_ended)
        };
        let orphan = processes().find(|process| is_orphan(process) && is_searched(process))?;
        Some(orphan.pid)
    }

    /// Returns whether the reaper has forgotten all processes.
    pub(super) fn is_empty(&self) -> bool {
        let stats = self.core.shared.counters.snapshot(true);
        stats.registered == 0
            && stats.without_pidfd == 0
            && self.kernel().pidfd_count() == self.world().kept_pidfds()
            && self.kernel().watch_count() == 0
            && self.kernel().request_count() == 0
            && self.core.inspect_registry(Registry::size) == Some(0)
            && self.core.shared.directory.pids().is_empty()
    }
}

/// What the reaper has to notice, and by when.
struct Due {
    event: &'static str,
    at: Instant,
    delay: Duration,
}

impl Registration {
    /// Returns whether the reaper has to reap this process.
    pub(super) fn is_for_zombie(&self, process: &Process) -> bool {
        matches!(process.state, ProcessState::Zombie(_))
        && process.parent == Parent::This
        && self.role != Role::Attached
        // Not after the reaper has resolved it without a wait, because it was no child.
        && self.exit.is_none_or(|exit| exit.status.is_some())
    }

    /// Returns what the reaper has yet to do about a process, if the kernel has reported it.
    fn due(&self, process: Option<&Process>, config: Config) -> Option<Due> {
        let due = |event, at, delay| Some(Due { event, at, delay });
        let Some(process) = process else {
            let is_open = self.exit.is_none();
            return due("there is no process", self.at, Duration::ZERO).filter(|_| is_open);
        };
        if !self.had_pidfd || !self.was_child || self.role == Role::Attached {
            return None;
        }
        match process.state {
            ProcessState::Zombie(_) if self.exit.is_none() => {
                due("it exited", process.died_at?, Duration::ZERO)
            }
            ProcessState::Zombie(_) => {
                let is_shared = self.role == Role::Shared;
                let grace = if is_shared {
                    config.grace
                } else {
                    Duration::ZERO
                };
                due("its grace is over", process.died_at?, grace)
            }
            ProcessState::Reaped(_) if process.reaped_by == Some(WaitBy::Other) => {
                let is_open = config.features.hangup && self.shim.state().pidfd.is_some();
                due("other code reaped it", process.reaped_at?, Duration::ZERO).filter(|_| is_open)
            }
            _ => None,
        }
    }
}
