use std::time::Duration;

use super::action::{Action, ForkedBy, Name};
use super::config::{INTERVAL, Recycling, long_grace};
use super::run::Simulation;
use super::world::{CROWD, Known};
use crate::kernel::simulated::{Disturbance, Parent, ProcessState, Resistance};
use crate::shim::Role;

fn to_duration(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

impl Simulation {
    /// Performs an action that takes no time.
    pub(super) fn perform(&self, action: Action) {
        let uses_reaper = matches!(
            action,
            Action::Spawn { .. }
                | Action::Register { .. }
                | Action::RegisterPidfd { .. }
                | Action::Adopt { .. }
                | Action::Await { .. }
                | Action::Subscribe { .. }
        );
        if uses_reaper {
            self.ensure_worker();
        }
        let kernel = self.kernel();
        match action {
            Action::Fork { name, pid, parent } => self.fork(name, pid, parent),
            Action::Exit { name, code } => self.exit(name, ProcessState::Zombie(code)),
            Action::ExitTraced { name, code } => self.exit(name, ProcessState::Traced(code)),
            Action::TracerWaits { name } => self.tracer_waits(name),
            Action::Wait { name } => self.wait(name),
            Action::BeginWait { name } => self.begin_wait(name),
            Action::EndWait { name } => self.end_wait(name),
            Action::ForbidInspection { name } => {
                if let Some(known) = self.known(name) {
                    if kernel.process(known.process).state.is_running() {
                        kernel.forbid_inspection(known.pid);
                    }
                }
            }
            Action::Resist { name, resistance } => {
                if let Some(known) = self.known(name) {
                    kernel.set_resistance(known.process, resistance);
                }
            }
            Action::ExitCrowd { code } => {
                for name in self.crowd() {
                    self.exit(name, ProcessState::Zombie(code));
                }
                self.expect_delay(INTERVAL);
            }
            Action::Spawn {
                name,
                pid,
                leads_group,
            } => self.spawn(name, pid, leads_group),
            Action::SpawnCrowd { count } => {
                self.world().crowd = count;
                for number in 0..count {
                    self.spawn(CROWD + number, CROWD + number, false);
                }
            }
            Action::Register { name } => self.register(name, Role::Shared),
            Action::RegisterPidfd { name } => self.register_pidfd(name),
            Action::Attach { name } => self.register(name, Role::Attached),
            Action::Adopt { name, has_pidfd } => self.adopt(name, has_pidfd),
            Action::Signal { name, signal } => self.signal(name, signal),
            Action::KillGroup { name } => self.kill_group(name),
            Action::Await {
                waiter,
                name,
                panics,
            } => self.start_waiting(waiter, name, panics),
            Action::CancelAwait { waiter } => self.stop_waiting(waiter),
            Action::Subscribe { capacity, panics } => self.subscribe(capacity, panics),
            Action::StopAll { millis, call } => self.stop_all(to_duration(millis), call),
            Action::CancelToken => self.cancel_token(),
            Action::RequestStop => self.request_stop(),
            Action::ShutDown { millis, call } => self.shut_down(millis.map(to_duration), call),
            Action::PollWorker => {
                if self.is_unlocked() {
                    self.poll_worker();
                }
            }
            Action::ReapInKernel => kernel.reap_in_kernel(),
            Action::Advance { .. } | Action::Stall { .. } => {}
            Action::DropRuntime => self.drop_runtime(),
            Action::LimitDescriptors { free } => kernel.limit_descriptors(free),
            Action::LiftLimit => {
                kernel.limit_descriptors(usize::MAX);
                self.expect_delay(2 * INTERVAL);
            }
            Action::LoseEvent { name } => self.disturb(name, Disturbance::Lost),
            Action::LoseEventsOfCrowd => {
                for name in self.crowd() {
                    self.disturb(name, Disturbance::Lost);
                }
            }
            Action::DelayEvent { name, millis } => {
                let at = kernel.time() + to_duration(millis);
                self.disturb(name, Disturbance::Late(at));
            }
            Action::RepeatEvent { name } => self.disturb(name, Disturbance::Twice),
            Action::ReportEarly { name } => self.disturb(name, Disturbance::Early),
            Action::ReportNoEvent => kernel.report_no_event(),
            Action::UnregisterEpoll => {
                kernel.unregister_epoll();
                self.expect_delay(9 * INTERVAL);
            }
            Action::FailNext(failure) => {
                kernel.fail_next(failure);
                if self.config.exhausts_descriptors {
                    self.expect_delay(2 * INTERVAL);
                }
            }
        }
    }

    pub(super) fn known(&self, name: Name) -> Option<Known> {
        self.world().names.get(&name).copied()
    }

    fn crowd(&self) -> std::ops::Range<Name> {
        CROWD..CROWD + self.world().crowd
    }

    /// Returns whether a new process may get this pid now.
    pub(super) fn may_fork(&self, pid: u32) -> bool {
        let kernel = self.kernel();
        if !kernel.is_free(pid) || self.world().adopted_pids.contains(&pid) {
            return false;
        }
        match self.config.recycling {
            Recycling::Immediate => true,
            Recycling::BetweenSteps => !self.world().pids_of_step.contains(&pid),
            Recycling::Slow => {
                let now = kernel.time();
                let pause = 3 * INTERVAL + long_grace(self.config.grace);
                let world = self.world();
                let mut before = world.names.values().filter(|known| known.pid == pid);
                let rested = before.all(|known| {
                    let reaped_at = kernel.process(known.process).reaped_at;
                    reaped_at.is_none_or(|at| at + pause <= now)
                });
                let directory = &self.core.shared.directory;
                rested
                    && now >= world.late_until
                    && !world.pids_of_step.contains(&pid)
                    && !directory.is_locked()
                    && !directory.pids().contains(&pid)
            }
        }
    }

    fn fork(&self, name: Name, pid: u32, parent: ForkedBy) {
        if !self.may_fork(pid) {
            return;
        }
        let kernel = self.kernel();
        let process = match parent {
            ForkedBy::Owner => kernel.fork(pid),
            ForkedBy::OwnerThread => kernel.fork_by_thread(pid),
            ForkedBy::Init => kernel.add_foreign(pid, true),
            ForkedBy::Shim(leader) => {
                let Some(leader) = self.known(leader) else {
                    return;
                };
                let shim = kernel.process(leader.process);
                // A process that is stuck in the kernel does not fork.
                let can_fork = shim.state.is_running() && shim.resistance != Resistance::Sigkill;
                if !can_fork || shim.group != Some(shim.pid) {
                    return;
                }
                kernel.add(pid, Parent::Process(leader.process), shim.group)
            }
        };
        let has_owner = matches!(parent, ForkedBy::Owner | ForkedBy::OwnerThread);
        self.add_name(name, process, pid, has_owner);
    }

    pub(super) fn add_name(&self, name: Name, process: usize, pid: u32, has_owner: bool) {
        let known = Known {
            process,
            pid,
            has_owner,
            cached: None,
            zombie_at_step: None,
        };
        let mut world = self.world();
        world.names.insert(name, known);
        world.pids_of_step.insert(pid);
    }

    pub(super) fn exit(&self, name: Name, state: ProcessState) {
        let Some(known) = self.known(name) else {
            return;
        };
        if self.kernel().process(known.process).state.is_running() {
            self.kernel().set_process(known.process, state);
            if matches!(state, ProcessState::Zombie(_)) {
                self.world().became_zombie(name);
            }
        }
    }

    pub(super) fn exit_stuck(&self, name: Name) {
        if let Some(known) = self.known(name) {
            if self.kernel().process(known.process).resistance == Resistance::Sigkill {
                self.exit(name, ProcessState::Zombie(-9));
            }
        }
    }

    fn tracer_waits(&self, name: Name) {
        let Some(known) = self.known(name) else {
            return;
        };
        if let ProcessState::Traced(code) = self.kernel().process(known.process).state {
            self.kernel()
                .set_process(known.process, ProcessState::Zombie(code));
            self.world().became_zombie(name);
            // Only the interval sweep sees it.
            self.expect_delay(2 * INTERVAL);
        }
    }

    pub(super) fn wait(&self, name: Name) {
        let Some(known) = self.known(name) else {
            return;
        };
        let status = self.kernel().wait_elsewhere(known.process);
        self.cache(name, status);
    }

    fn cache(&self, name: Name, status: Option<std::process::ExitStatus>) {
        if let Some(known) = self.world().names.get_mut(&name) {
            if known.has_owner {
                known.cached = known.cached.or(status);
            }
        }
    }

    fn begin_wait(&self, name: Name) {
        let Some(known) = self.known(name) else {
            return;
        };
        if let ProcessState::Zombie(code) = self.kernel().process(known.process).state {
            self.kernel()
                .set_process(known.process, ProcessState::BeingReaped(code));
        }
    }

    pub(super) fn end_wait(&self, name: Name) {
        let Some(known) = self.known(name) else {
            return;
        };
        let state = self.kernel().process(known.process).state;
        if let ProcessState::BeingReaped(code) = state {
            self.kernel()
                .set_process(known.process, ProcessState::Reaped(code));
            self.cache(name, state.status());
        }
    }

    fn disturb(&self, name: Name, disturbance: Disturbance) {
        let Some(known) = self.known(name) else {
            return;
        };
        self.kernel().disturb(known.process, disturbance);
    }
}
