use std::mem;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard};

use shim_reaper::{ShimHandle, ShimReaper, SpawnOptions};
use tokio::time::{sleep, timeout};

use crate::child::{Fate, Owner, Registered, spawn_parent};
use crate::random::Random;

/// The processes that the tasks of a round have started.
pub(crate) struct Population {
    rules: Rules,
    registered: Mutex<Vec<Registered>>,
    owners: Mutex<Vec<Owner>>,
}

/// What the tasks of a round may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Owners wait for registered children, and their grace period never ends.
    pub(crate) owners_wait: bool,
    /// Shims leave orphans, and the reaper reaps them.
    pub(crate) orphans: bool,
    /// Every handle is kept, and awaited at the end.
    pub(crate) keep_handles: bool,
    /// The kernel reports the status of a child that its owner has reaped.
    pub(crate) keeps_statuses: bool,
}

impl Population {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            registered: Mutex::default(),
            owners: Mutex::default(),
        }
    }

    pub(crate) fn registered(&self) -> MutexGuard<'_, Vec<Registered>> {
        self.registered.lock().unwrap()
    }

    pub(crate) fn owners_have_waited(&self) -> bool {
        self.owners.lock().unwrap().iter().all(Owner::has_waited)
    }

    pub(crate) fn take_owners(&self) -> Vec<Owner> {
        mem::take(&mut self.owners.lock().unwrap())
    }

    fn add_owner(&self, child: Child, fate: Fate) {
        self.owners.lock().unwrap().push(Owner::start(child, fate));
    }
}

/// One lifecycle of a child, or a few related ones. It awaits nothing between a registration and its
/// record, so its future can be dropped at any await point.
pub(crate) struct Lifecycle {
    pub(crate) population: Arc<Population>,
    pub(crate) reaper: ShimReaper,
    pub(crate) random: Random,
}

impl Lifecycle {
    pub(crate) async fn run(mut self) {
        sleep(self.random.millis(30)).await;
        let fate = Fate::random(&mut self.random);
        let handle = match self.random.below(6) {
            0 => self.spawn(fate).await,
            1 => self.register_new_child(fate),
            2 => self.register(fate, None).await,
            3 => self.attach(fate).await,
            4 => self.pipeline(fate).await,
            _ => self.kill().await,
        };
        let Some(handle) = handle else { return };
        match self.random.below(3) {
            // Usually cancelled by the timeout.
            0 => drop(timeout(self.random.millis(5), handle).await),
            1 => drop(handle.await),
            _ => drop(handle),
        }
    }

    fn command(&mut self, fate: Fate, group: Option<u32>) -> Command {
        let mut command = fate.command(&mut self.random);
        if let Some(group) = group {
            command.process_group(group as i32);
        }
        command
    }

    fn record(&mut self, fate: Fate, handle: ShimHandle) -> ShimHandle {
        let keep = self.population.rules.keep_handles || fate == Fate::Killed;
        self.population.registered().push(Registered {
            pid: handle.pid(),
            fate,
            may_be_unknown: false,
            attached: false,
            handle: (keep || self.random.one_in(2)).then(|| handle.clone()),
        });
        handle
    }

    async fn spawn(&mut self, fate: Fate) -> Option<ShimHandle> {
        let command = self.command(fate, None);
        let handle = self.reaper.spawn(command).await.ok()?;
        Some(self.record(fate, handle))
    }

    fn register_new_child(&mut self, fate: Fate) -> Option<ShimHandle> {
        let child = self.command(fate, None).spawn().unwrap();
        self.register_child(child, fate)
    }

    fn register_child(&mut self, child: Child, fate: Fate) -> Option<ShimHandle> {
        match self.reaper.register_child(child) {
            Ok(handle) => Some(self.record(fate, handle)),
            Err(closed) => {
                self.population
                    .add_owner(closed.into_child().unwrap(), fate);
                None
            }
        }
    }

    async fn register(&mut self, fate: Fate, group: Option<u32>) -> Option<ShimHandle> {
        // Fails if the process group is already gone.
        let child = self.command(fate, group).spawn().ok()?;
        let Ok(handle) = self.reaper.register(child.id()).await else {
            self.population.add_owner(child, fate);
            return None;
        };
        let handle = self.record(fate, handle);
        let rules = self.population.rules;
        if rules.owners_wait {
            let mut registered = self.population.registered();
            let mut shims = registered.iter_mut();
            if let Some(shim) = shims.find(|shim| shim.pid == handle.pid()) {
                shim.may_be_unknown = !rules.keeps_statuses;
            }
            self.population.add_owner(child, fate);
        }
        Some(handle)
    }

    async fn attach(&mut self, fate: Fate) -> Option<ShimHandle> {
        let (parent, pid) = spawn_parent(fate, &mut self.random);
        drop(self.register_child(parent, Fate::Code(3)));
        let handle = self.reaper.attach(pid).await.ok()?;
        self.population.registered().push(Registered {
            pid,
            fate,
            may_be_unknown: true,
            attached: true,
            handle: Some(handle.clone()),
        });
        Some(handle)
    }

    /// Spawns a shim, and children of the embedder into its process group.
    async fn pipeline(&mut self, fate: Fate) -> Option<ShimHandle> {
        let options = SpawnOptions::new().process_group(true);
        let command = if self.population.rules.orphans {
            fate.command_with_orphan(&mut self.random)
        } else {
            fate.command(&mut self.random)
        };
        let leader = self.reaper.spawn_with(command, options).await.ok()?;
        let leader = self.record(fate, leader);
        let group = Some(leader.pid());
        for _ in 0..self.random.below(4) {
            let fate = Fate::random(&mut self.random);
            if let Ok(member) = self.command(fate, group).spawn() {
                self.population.add_owner(member, fate);
            }
        }
        if self.random.one_in(2) {
            let fate = Fate::random(&mut self.random);
            drop(self.register(fate, group).await);
        }
        Some(leader)
    }

    async fn kill(&mut self) -> Option<ShimHandle> {
        let handle = self.spawn(Fate::Killed).await?;
        sleep(self.random.millis(40)).await;
        let _ = handle.kill();
        Some(handle)
    }
}
