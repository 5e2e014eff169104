use std::sync::Arc;
use std::task::Waker;

use super::action::Name;
use super::config::{INTERVAL, Spawning};
use super::run::Simulation;
use super::world::{Adoption, Flag, Registration, Spawn, Waiter};
use crate::Signal;
use crate::command::sealed::CommandRef;
use crate::kernel::simulated::{Descriptor, Parent};
use crate::shim::{NO_PROCESS, Role, Shim};

/// What the users of the reaper do.
impl Simulation {
    pub(super) fn spawn(&self, name: Name, pid: u32, leads_group: bool) {
        let shared = &self.core.shared;
        if shared.is_refusing() || !self.may_fork(pid) || !self.is_unlocked() {
            return;
        }
        self.world().spawning.push(Spawn {
            name,
            pid,
            leads_group,
            process: None,
        });
        let process_group = leads_group.then_some(0);
        let is_born_with_pidfd = self.is_born_with_pidfd();
        let spawned = match self.config.spawning {
            Spawning::Native => {
                let mut command = pidfd_spawn::Command::new("");
                shared.spawn(CommandRef::Native(&mut command), process_group)
            }
            Spawning::EarlyStd | Spawning::Std => {
                let mut command = std::process::Command::new("");
                shared.spawn(CommandRef::Std(&mut command), process_group)
            }
        };
        let process = self.world().spawning.pop().and_then(|spawn| spawn.process);
        match spawned {
            Ok((shim, _)) => {
                self.note_registration(shim, Role::Owned, process, None);
                if is_born_with_pidfd {
                    let mut world = self.world();
                    if let Some(registration) = world.registrations.last_mut() {
                        registration.had_pidfd = true;
                    }
                }
            }
            // The kernel has created no child, or the reaper has killed it.
            Err(_) if process.is_none() => {}
            Err(_) => self.expect_closing("spawn"),
        }
    }

    /// Creates the child of the latest spawn.
    pub(super) fn fork_child(&self) -> Option<usize> {
        let spawn = self.world().spawning.last().copied()?;
        if !self.may_fork(spawn.pid) {
            return None;
        }
        let group = spawn.leads_group.then_some(spawn.pid);
        let process = self.kernel().add(spawn.pid, Parent::This, group);
        self.add_name(spawn.name, process, spawn.pid, false);
        if self.config.exhausts_descriptors {
            self.expect_delay(INTERVAL);
        }
        if let Some(spawn) = self.world().spawning.last_mut() {
            spawn.process = Some(process);
        }
        Some(process)
    }

    fn is_spawning(&self, pid: u32) -> bool {
        let world = self.world();
        let mut created = world
            .spawning
            .iter()
            .filter(|spawn| spawn.process.is_some());
        created.any(|spawn| spawn.pid == pid)
    }

    pub(super) fn register(&self, name: Name, role: Role) {
        let Some(known) = self.known(name) else {
            return;
        };
        // No other code knows the pid before `spawn` returns.
        if !self.is_unlocked() || self.is_spawning(known.pid) {
            return;
        }
        let holder = self.kernel().find(known.pid);
        match self.core.shared.register(known.pid, role) {
            Ok(shim) => self.note_registration(shim, role, None, holder),
            Err(_) => self.expect_closing("register"),
        }
    }

    pub(super) fn register_pidfd(&self, name: Name) {
        let Some(known) = self.known(name) else {
            return;
        };
        if !self.is_unlocked() || self.is_spawning(known.pid) {
            return;
        }
        let Some(pidfd) = self.kernel().pidfd_of(known.process) else {
            return;
        };
        let (pid, role) = (known.pid, Role::Shared);
        match self.core.shared.register_process(pid, Some(pidfd), role) {
            Ok(shim) => self.note_registration(shim, role, Some(known.process), None),
            Err(_) => self.expect_closing("register"),
        }
    }

    /// The owner passes its `Child` to the reaper.
    pub(super) fn adopt(&self, name: Name, has_pidfd: bool) {
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
        if !has_pidfd && holder.is_some_and(|holder| holder != known.process) {
            return;
        }
        let pidfd = if has_pidfd {
            kernel.pidfd_of(known.process)
        } else {
            None
        };
        if has_pidfd && pidfd.is_none() {
            return;
        }
        {
            let mut world = self.world();
            world.adopted_pids.push(known.pid);
            if let Some(known) = world.names.get_mut(&name) {
                known.has_owner = false;
            }
        }
        let mut adoption = Adoption::Running;
        let mut try_wait = || {
            if known.cached.is_some() {
                adoption = Adoption::WaitedFor;
                return known.cached;
            }
            let status = kernel.wait_elsewhere(known.process)?;
            kernel.mark_reaped_by_reaper(known.process);
            adoption = Adoption::Reaped;
            Some(status)
        };
        match self.core.shared.adopt(known.pid, pidfd, &mut try_wait) {
            Ok(shim) => {
                let id = shim.id;
                self.note_registration(shim, Role::Owned, Some(known.process), None);
                let mut world = self.world();
                world.reaped += u64::from(adoption == Adoption::Reaped);
                let mut registrations = world.registrations.iter_mut();
                if let Some(adopted) = registrations.find(|one| one.shim.id == id) {
                    adopted.adoption = Some(adoption);
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
            let was_attached = known.role == Role::Attached && role > known.role;
            if role > known.role {
                known.role = role;
                known.was_shared |= role == Role::Shared;
                known.at = at;
            }
            let registered = known.process;
            let candidates = match process {
                Some(_) => [process; 2],
                // Between the two calls the pid may have changed hands.
                None => [holder, self.kernel().find(known.shim.pid)],
            };
            let is_one = registered == candidates[0] || registered == candidates[1];
            let may_differ = process.is_none() && self.config.exhausts_descriptors;
            let exists = candidates.iter().all(Option::is_some);
            if exists && !is_one && !may_differ {
                world.fail(format!(
                    "{candidates:?} got the registration of {registered:?}"
                ));
            }
            drop(world);
            if was_attached {
                // The grace period of an attached process may be longer.
                self.expect_delay(INTERVAL);
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
            was_shared: role == Role::Shared,
            adoption: None,
            had_pidfd,
            at,
            exit: None,
            is_published: false,
        });
    }

    /// Returns whether the child of a spawn certainly has a pidfd before it can exit: also that of a
    /// std command once the reaper has counted a foreign wait.
    fn is_born_with_pidfd(&self) -> bool {
        let config = &self.config;
        let stats = self.core.shared.counters.snapshot(true);
        let is_early = config.spawning != Spawning::Std
            || config.features.reaps_children
            || stats.foreign_waits_total > 0;
        config.features.pidfds && is_early && !config.exhausts_descriptors
    }

    /// Sends a signal through the latest handle to a process.
    pub(super) fn signal(&self, name: Name, signal: Signal) {
        let Some((process, shim)) = self.latest_handle(name) else {
            return;
        };
        self.world().signalled.insert((process, signal));
        let _ = shim.signal(self.kernel(), signal);
    }

    pub(super) fn latest_handle(&self, name: Name) -> Option<(usize, Arc<Shim<Descriptor>>)> {
        let process = self.known(name)?.process;
        let world = self.world();
        let latest = world.registrations_of(process).last()?;
        let shim = Arc::clone(&latest.shim);
        (!shim.is_locked()).then_some((process, shim))
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
}
