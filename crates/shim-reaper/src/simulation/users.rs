use std::sync::Arc;
use std::task::Waker;

use super::action::Name;
use super::config::INTERVAL;
use super::run::Simulation;
use super::world::{Flag, Registration, Waiter};
use crate::Signal;
use crate::directory::Check;
use crate::kernel::simulated::{Descriptor, Parent, ProcessState};
use crate::kernel::{NoPidfd, ProcessTable};
use crate::shim::{NO_PROCESS, Role, Shim};

/// What the users of the reaper do.
impl Simulation {
    pub(super) fn spawn(&self, name: Name, pid: u32, leads_group: bool) {
        let shared = &self.core.shared;
        let may_fork = self.may_fork(pid);
        if shared.is_refusing() || !may_fork || !self.is_unlocked() {
            return;
        }
        let kernel = self.kernel();
        let process = kernel.add(pid, Parent::This, leads_group.then_some(pid));
        self.add_name(name, process, pid, false);
        self.world().spawning.push(pid);
        let pidfd = if self.config.early_pidfd {
            kernel.open_now(pid)
        } else {
            kernel.open(pid)
        };
        if let Err(NoPidfd::Exhausted(_)) = pidfd {
            self.expect_delay(INTERVAL);
        }
        let registered = shared.insert(pid, Role::Owned, leads_group, pidfd, Check::OnEvent);
        self.world().spawning.pop();
        match registered {
            Ok(shim) => self.note_registration(shim, Role::Owned, Some(process), None),
            Err(_) => {
                self.expect_closing("spawn");
                self.exit(name, ProcessState::Zombie(-9));
                self.world().killed.insert(process);
                self.wait(name);
            }
        }
    }

    pub(super) fn register(&self, name: Name, role: Role) {
        let Some(known) = self.known(name) else {
            return;
        };
        // No other code knows the pid before `spawn` returns.
        if !self.is_unlocked() || self.world().spawning.contains(&known.pid) {
            return;
        }
        let holder = self.kernel().find(known.pid);
        match self.core.shared.register(known.pid, role) {
            Ok(shim) => self.note_registration(shim, role, None, holder),
            Err(_) => self.expect_closing("register"),
        }
    }

    /// The owner gives up its `Child`.
    pub(super) fn adopt(&self, name: Name) {
        let Some(known) = self.known(name).filter(|known| known.has_owner) else {
            return;
        };
        if !self.is_unlocked() {
            return;
        }
        let kernel = self.kernel();
        // A `Child` that outlives its process only has a pid. If another process gets it and is
        // registered, the `Child` cannot be told from one of that process.
        let holder = kernel.find(known.pid);
        if holder.is_some_and(|holder| holder != known.process) {
            return;
        }
        {
            let mut world = self.world();
            world.adopted_pids.push(known.pid);
            if let Some(known) = world.names.get_mut(&name) {
                known.has_owner = false;
            }
        }
        let try_wait = || {
            known.cached.or_else(|| {
                let status = kernel.wait_elsewhere(known.process)?;
                kernel.mark_reaped_by_reaper(known.process);
                Some(status)
            })
        };
        match self.core.shared.adopt_by(known.pid, try_wait) {
            Ok(shim) => {
                let published = shim.state().exit();
                self.note_registration(shim, Role::Owned, Some(known.process), None);
                if published.is_some_and(|exit| exit.collected_by == crate::CollectedBy::Reaper) {
                    self.world().reaped += 1;
                }
            }
            Err(_) => self.expect_closing("register_child"),
        }
        self.world().adopted_pids.pop();
    }

    fn expect_closing(&self, call: &str) {
        if !self.core.shared.is_refusing() {
            self.world()
                .fail(format!("{call} failed before a shutdown"));
        }
    }

    /// Records a registration. `process` is what it has to be for, if only that is correct;
    /// otherwise `holder` had the pid when the call began.
    fn note_registration(
        &self,
        shim: Arc<Shim<Descriptor>>,
        role: Role,
        process: Option<usize>,
        holder: Option<usize>,
    ) {
        let (had_pidfd, found, later_holder) = {
            let state = shim.state();
            let by_pidfd = state.pidfd.as_ref().map(|pidfd| pidfd.process);
            let by_start_time = state.start_time.filter(|start| *start != NO_PROCESS);
            let found = by_pidfd.or(by_start_time.map(|start| start as usize));
            let exists = state.start_time != Some(NO_PROCESS);
            let later_holder = self.kernel().find(shim.pid).filter(|_| exists);
            (by_pidfd.is_some(), found, later_holder)
        };
        let at = self.kernel().time();
        let mut world = self.world();
        let known = world.registrations.iter_mut();
        let mut known = known.filter(|registration| registration.shim.id == shim.id);
        if let Some(known) = known.next() {
            if role > known.role {
                known.role = role;
                known.at = at;
            }
            let registered = known.process;
            // Between the two calls the pid may have changed hands.
            let candidates = [process.or(holder), self.kernel().find(known.shim.pid)];
            let is_one = registered == candidates[0] || registered == candidates[1];
            let may_differ = process.is_none() && self.config.exhausts_descriptors;
            let exists = candidates.iter().all(Option::is_some);
            if exists && !is_one && !may_differ {
                world.fail(format!(
                    "{candidates:?} got the registration of {registered:?}"
                ));
            }
            return;
        }
        if process.is_some() && found.is_some() && found != process {
            world.fail(format!("{found:?} is registered in place of {process:?}"));
        }
        let process = process.or(found).or(holder).or(later_holder);
        let parent = process.map(|index| self.kernel().process(index).parent);
        world.registrations.push(Registration {
            shim,
            process,
            was_child: parent == Some(Parent::This),
            role,
            had_pidfd,
            at,
            exit: None,
            is_published: false,
        });
    }

    /// Sends SIGKILL through the latest handle to a process.
    pub(super) fn kill(&self, name: Name) {
        let Some(known) = self.known(name) else {
            return;
        };
        let shim = {
            let world = self.world();
            let latest = world.registrations_of(known.process).last();
            latest.map(|registration| Arc::clone(&registration.shim))
        };
        let Some(shim) = shim.filter(|shim| !shim.is_locked()) else {
            return;
        };
        self.world().killed.insert(known.process);
        let _ = shim.signal(self.kernel(), Signal::SIGKILL);
    }

    pub(super) fn start_waiting(&self, waiter: u32, name: Name, panics: bool) {
        let Some(known) = self.known(name) else {
            return;
        };
        let mut world = self.world();
        let latest = world.registrations_of(known.process).last();
        let shim = latest.map(|registration| Arc::clone(&registration.shim));
        let Some(shim) = shim.filter(|shim| !shim.is_locked()) else {
            return;
        };
        let flag = Arc::new(Flag::new(panics));
        let mut key = None;
        if shim
            .poll_exit(&mut key, &Waker::from(Arc::clone(&flag)))
            .is_pending()
        {
            world.waiters.insert(waiter, Waiter { shim, key, flag });
        }
    }

    pub(super) fn stop_waiting(&self, waiter: u32) {
        let mut world = self.world();
        let unlocked = |waiter: &&mut Waiter| !waiter.shim.is_locked();
        let Some(found) = world.waiters.get_mut(&waiter).filter(unlocked) else {
            return;
        };
        if let Some(key) = found.key {
            found.shim.stop_waiting(key);
        }
        world.waiters.remove(&waiter);
    }

    pub(super) fn subscribe(&self) {
        let exits = self.core.shared.subscribers.subscribe();
        let old = self.world().other_exits.replace(exits);
        drop(old);
    }
}
