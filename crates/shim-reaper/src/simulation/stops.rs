//! Stopping all processes, and shutting down.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::action::{Call, Name};
use super::run::{Simulation, Task, lock};
use crate::group::Group;
use crate::kernel::simulated::{Parent, ProcessState, Resistance};
use crate::shim::Role;
use crate::{ShutdownReport, Signal, StopReport, stop};

/// The stops of a history.
#[derive(Debug, Default)]
pub(super) struct Stops {
    /// When those that are under way may send SIGKILL.
    kill_at: Vec<Instant>,
    /// The pids of the processes to which they have sent SIGKILL.
    killed: BTreeSet<u32>,
    /// The pids of members of groups to which they have sent SIGKILL, and of the leaders. They may
    /// have been sent it themselves, or not.
    killed_with_group: BTreeSet<u32>,
    /// Whether a shutdown leaves processes running.
    leaves_running: bool,
    /// Whether some of them were not part of a shutdown.
    has_stop_all: bool,
}

/// The pids and processes that a stop has to end.
type Targets = Vec<(u32, usize)>;

impl Simulation {
    /// Returns whether a thread could stop all processes now without being blocked by a lock.
    pub(super) fn may_stop(&self) -> bool {
        self.is_unlocked() && self.core.inspect_registry(|_| ()).is_some()
    }

    pub(super) fn stop_all(&self, grace: Duration, call: Call) {
        let Some(this) = self.this.upgrade().filter(|_| self.may_stop()) else {
            return;
        };
        self.world().stops.has_stop_all = true;
        let core = Arc::clone(&self.core);
        let task = async move {
            let targets = this.begin_stop(grace);
            let kill_at = this.world().stops.kill_at.last().copied();
            let report = match call {
                Call::Blocking => stop::stop_all(&core, grace),
                Call::Awaited | Call::Dropped => stop::stop_all_on_thread(&core, grace).await,
            };
            let ended = |at: &Instant| Some(*at) == kill_at;
            let mut world = this.world();
            if let Some(position) = world.stops.kill_at.iter().position(ended) {
                world.stops.kill_at.remove(position);
            }
            drop(world);
            this.check_stop(&targets, &report);
        };
        self.start_task(Box::pin(task), call);
    }

    /// Shuts the reaper down, after a stop of all processes if there is a grace period.
    pub(super) fn shut_down(&self, grace: Option<Duration>, call: Call) {
        let may_begin = match (grace, call) {
            (None, Call::Awaited | Call::Dropped) => self.is_unlocked(),
            _ => self.may_stop(),
        };
        let Some(this) = self.this.upgrade().filter(|_| may_begin) else {
            return;
        };
        self.begin_closing();
        let core = Arc::clone(&self.core);
        let task = async move {
            let targets = match grace {
                Some(grace) => this.begin_stop(grace),
                None => Targets::new(),
            };
            let report = match (grace, call) {
                (None, Call::Blocking) => stop::shutdown(&core),
                (None, _) => stop::shutdown_on_thread(&core).await,
                (Some(grace), Call::Blocking) => stop::shutdown_stopping(&core, grace),
                (Some(grace), _) => stop::shutdown_stopping_on_thread(&core, grace).await,
            };
            this.check_shutdown(&targets, &report);
        };
        if grace.is_none() {
            self.world().stops.leaves_running = true;
        }
        self.start_task(Box::pin(task), call);
    }

    pub(super) fn cancel_token(&self) {
        self.begin_closing();
        self.world().stops.leaves_running = true;
        self.core.shared.token.cancel();
    }

    /// Makes the worker stop all processes and shut down.
    pub(super) fn request_stop(&self) {
        if let Some(request) = &self.core.shared.stop_request {
            self.begin_closing();
            self.begin_stop(request.grace);
            request.token.cancel();
        }
    }

    fn begin_closing(&self) {
        let mut world = self.world();
        let step = world.step;
        world.closed_at.get_or_insert(step);
    }

    /// Records a stop. Returns what it has to end.
    fn begin_stop(&self, grace: Duration) -> Targets {
        let kernel = self.kernel();
        let mut world = self.world();
        let kill_at = kernel.time() + grace;
        world.stops.kill_at.push(kill_at);
        let running = world.registrations.iter().filter_map(|registration| {
            let index = registration.process?;
            let process = kernel.process(index);
            let is_child = process.parent == Parent::This && process.state.is_running();
            // Locked by the call that a worker makes now.
            let shim = &registration.shim;
            let is_registered = !shim.is_locked() && shim.state().is_running_child();
            (is_child && is_registered).then_some((process.pid, index))
        });
        running.collect()
    }

    fn start_task(&self, mut task: Task, call: Call) {
        let poll = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if poll.is_pending() && call == Call::Awaited {
            lock(&self.tasks).push(task);
        }
    }

    /// Runs the threads that the reaper has started, one after another.
    pub(super) fn run_threads(&self) {
        while self.may_stop() {
            let Some(thread) = lock(&self.threads).pop_front() else {
                return;
            };
            thread();
        }
    }

    /// Checks a signal that the reaper has sent.
    pub(super) fn check_signal(&self, index: usize, signal: Signal) {
        let kernel = self.kernel();
        let process = kernel.process(index);
        let mut world = self.world();
        let name = world.name_of(index);
        if let (Some(name), ProcessState::Zombie(_)) = (name, process.state) {
            world.became_zombie(name);
        }
        let leader = kernel.group_leader(index);
        let is_killed_group = leader.is_some_and(|leader| world.killed_groups.contains(&leader));
        if is_killed_group && signal == Signal::SIGKILL {
            return;
        }
        if world.signalled.contains(&(index, signal)) {
            return;
        }
        let is_registered = world
            .registrations_of(index)
            .any(|one| one.role != Role::Attached);
        let leader = leader.filter(|leader| {
            let mut registrations = world.registrations_of(*leader);
            registrations.any(|one| one.shim.leads_group)
        });
        let is_child = process.parent == Parent::This && is_registered;
        let kill_at = world.stops.kill_at.iter().min().copied();
        let is_due = kill_at.is_some_and(|at| signal != Signal::SIGKILL || kernel.time() >= at);
        if !(is_child || leader.is_some()) || !is_due {
            world.fail(format!("process {name:?} got {signal} wrongly or early"));
        }
        if signal == Signal::SIGKILL && is_registered {
            let is_member = leader.is_some_and(|leader| leader != index);
            let stops = &mut world.stops;
            let killed = if is_member {
                &mut stops.killed_with_group
            } else {
                &mut stops.killed
            };
            killed.insert(process.pid);
        }
        if let (Signal::SIGKILL, Some(leader)) = (signal, leader) {
            let pid = kernel.process(leader).pid;
            world.stops.killed_with_group.insert(pid);
        }
    }

    /// Kills the group of a shim through a handle.
    pub(super) fn kill_group(&self, name: Name) {
        let Some((leader, shim)) = self.latest_handle(name).filter(|_| self.may_stop()) else {
            return;
        };
        let kernel = self.kernel();
        let Some(mut group) = Group::of(kernel, &shim) else {
            return;
        };
        self.world().killed_groups.insert(leader);
        let is_killed = group.kill(stop::after(kernel, stop::KILL_TIMEOUT)).is_ok();
        let mut processes = 0..kernel.process_count();
        let left = processes.find(|index| {
            kernel.group_leader(*index) == Some(leader) && kernel.process(*index).state.is_running()
        });
        // While a wait for the leader is in progress, the group looks like a recycled one.
        let is_known = kernel.process(leader).reap_began_at.is_none();
        if let Some(left) = left.filter(|_| is_killed && is_known) {
            let failure = format!("the kill of the group of {name} left {left} running");
            self.world().fail(failure);
        }
    }

    fn check_stop(&self, targets: &Targets, report: &StopReport) {
        self.check_targets(targets, &report.still_running);
        let mut world = self.world();
        let by_handle = world.signalled.iter().filter_map(|(index, signal)| {
            (*signal == Signal::SIGKILL).then_some(self.kernel().process(*index).pid)
        });
        let kernel = self.kernel();
        let is_killed = |index: &usize| {
            let leader = kernel.group_leader(*index);
            leader.is_some_and(|leader| world.killed_groups.contains(&leader))
        };
        let members = (0..kernel.process_count()).filter(is_killed);
        let by_group = members.chain(world.killed_groups.iter().copied());
        let by_group = by_group.map(|index| kernel.process(index).pid);
        let killed: BTreeSet<u32> = by_handle
            .chain(by_group)
            .chain(world.stops.killed.iter().copied())
            .chain(world.stops.killed_with_group.iter().copied())
            .collect();
        if !report.killed.iter().all(|pid| killed.contains(pid)) {
            world.fail(format!("{report:?}, but only {killed:?} got SIGKILL"));
        }
    }

    fn check_shutdown(&self, targets: &Targets, report: &ShutdownReport) {
        self.check_targets(targets, &report.still_running);
        let closed = self
            .core
            .inspect_registry(|registry| registry.closed.clone());
        let mut world = self.world();
        // The worker may wait for the registry, which is then locked.
        if closed.is_some_and(|closed| closed.as_ref() != Some(report)) {
            world.fail(format!("{report:?} is not the report of the final drain"));
        }
        let killed = &world.stops.killed;
        let are_listed = killed.iter().all(|pid| report.killed.contains(pid));
        if !world.stops.has_stop_all && !are_listed {
            let failure = format!("{report:?}, but {killed:?} got SIGKILL");
            world.fail(failure);
        }
    }

    /// A stop ends every process, or reports that it is stuck.
    fn check_targets(&self, targets: &Targets, still_running: &[u32]) {
        let mut world = self.world();
        if world.stops.leaves_running {
            return;
        }
        for (pid, index) in targets {
            let process = self.kernel().process(*index);
            let is_stuck = process.resistance == Resistance::Sigkill;
            // Without a free descriptor, a process may have no identity to signal.
            let may_run = is_stuck || self.config.exhausts_descriptors;
            if process.state.is_running() && !(may_run && still_running.contains(pid)) {
                world.fail(format!(
                    "a stop left {pid} running, and reports {still_running:?}"
                ));
            }
        }
    }
}
