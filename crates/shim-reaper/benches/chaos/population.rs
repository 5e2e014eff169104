use std::io;
use std::mem;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread;
use std::time::Duration;

use shim_reaper::{ShimHandle, ShimReaper, SpawnOptions};
use tokio::time::{sleep, timeout};

use crate::census;
use crate::child::{Fate, Owner, Registered, spawn_parent, spawn_tracer};
use crate::random::Random;

/// The processes that the tasks of a round have started.
pub(crate) struct Population {
    rules: Rules,
    registered: Mutex<Vec<Registered>>,
    owners: Mutex<Vec<Owner>>,
    main_thread: mpsc::Sender<SpawnRequest>,
    /// The number of handles that did not resolve while a tracer held their dead shim.
    unresolved: AtomicU64,
}

/// A command that the main thread has to spawn, and the channel for the child.
pub(crate) type SpawnRequest = (Command, mpsc::Sender<io::Result<Child>>);

/// What the tasks of a round may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Owners wait for registered children, and their grace period never ends.
    pub(crate) owners_wait: bool,
    /// Shims leave orphans, and the reaper reaps them.
    pub(crate) orphans: bool,
    /// Every handle is kept, and awaited at the end.
    pub(crate) keep_handles: bool,
    /// Some shims are traced when they exit. Without pidfds, the reaper considers them running.
    pub(crate) tracers: bool,
    /// The kernel reports the status of a child that its owner has reaped.
    pub(crate) keeps_statuses: bool,
}

impl Population {
    pub(crate) fn new(rules: Rules, main_thread: mpsc::Sender<SpawnRequest>) -> Self {
        Self {
            rules,
            registered: Mutex::default(),
            owners: Mutex::default(),
            main_thread,
            unresolved: AtomicU64::new(0),
        }
    }

    pub(crate) fn unresolved(&self) -> u64 {
        self.unresolved.load(Relaxed)
    }

    fn spawn_on_main_thread(&self, command: Command) -> io::Result<Child> {
        let (reply, child) = mpsc::channel();
        self.main_thread.send((command, reply)).unwrap();
        child.recv().unwrap()
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

    fn add_owner(&self, child: Child, fate: Fate, delay: Option<Duration>) {
        let owner = Owner::start(child, fate, delay);
        self.owners.lock().unwrap().push(owner);
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
        let handle = match self.random.below(7) {
            0 => self.spawn(fate).await,
            1 => self.register_new_child(fate),
            2 => self.register(fate, None).await,
            3 => self.attach(fate).await,
            4 => self.pipeline(fate).await,
            5 if self.population.rules.tracers => self.trace().await,
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

    /// Returns how long an owner delays its wait. The longest delay is far shorter than the grace
    /// period.
    fn random_delay(&mut self) -> Option<Duration> {
        let is_delayed = self.population.rules.owners_wait && self.random.one_in(2);
        is_delayed.then(|| self.random.millis(100))
    }

    /// Spawns a member of the process group of a shim. If the grace period never ends, the member
    /// may look like an orphan: the main thread spawns it, or a thread that exits.
    fn spawn_member(&mut self, mut command: Command) -> io::Result<Child> {
        if !self.population.rules.owners_wait {
            return command.spawn();
        }
        match self.random.below(3) {
            0 => command.spawn(),
            1 => self.population.spawn_on_main_thread(command),
            _ => thread::spawn(move || command.spawn()).join().unwrap(),
        }
    }

    fn record(&mut self, fate: Fate, handle: ShimHandle) -> ShimHandle {
        let keep = self.population.rules.keep_handles || fate == Fate::Killed;
        self.population.registered().push(Registered {
            pid: handle.id(),
            fate,
            may_be_unknown: false,
            attached: false,
            handle: (keep || self.random.one_in(2)).then(|| handle.clone()),
        });
        handle
    }

    async fn spawn(&mut self, fate: Fate) -> Option<ShimHandle> {
        let command = self.command(fate, None);
        let handle = self.reaper.spawn(command).ok()?;
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
                    .add_owner(closed.into_child().unwrap(), fate, None);
                None
            }
        }
    }

    async fn register(&mut self, fate: Fate, group: Option<u32>) -> Option<ShimHandle> {
        // Fails if the process group is already gone.
        let command = self.command(fate, group);
        let child = self.spawn_member(command).ok()?;
        let Ok(handle) = self.reaper.register(child.id()) else {
            self.population.add_owner(child, fate, None);
            return None;
        };
        let handle = self.record(fate, handle);
        let rules = self.population.rules;
        let delay = self.random_delay();
        if rules.owners_wait {
            let mut registered = self.population.registered();
            let mut shims = registered.iter_mut();
            if let Some(shim) = shims.find(|shim| shim.pid == handle.id()) {
                shim.may_be_unknown = !rules.keeps_statuses;
            }
            self.population.add_owner(child, fate, delay);
        }
        Some(handle)
    }

    async fn attach(&mut self, fate: Fate) -> Option<ShimHandle> {
        let (parent, pid) = spawn_parent(fate, &mut self.random);
        drop(self.register_child(parent, Fate::Code(3)));
        let handle = self.reaper.attach(pid).ok()?;
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
        let leader = self.reaper.spawn_with(command, options).ok()?;
        let leader = self.record(fate, leader);
        let group = Some(leader.id());
        for _ in 0..self.random.below(4) {
            let fate = Fate::random(&mut self.random);
            let command = self.command(fate, group);
            if let Ok(member) = self.spawn_member(command) {
                let delay = self.random_delay();
                self.population.add_owner(member, fate, delay);
            }
        }
        if self.random.one_in(2) {
            let fate = Fate::random(&mut self.random);
            drop(self.register(fate, group).await);
        }
        if self.population.rules.orphans {
            self.register_late(leader.id()).await;
        }
        Some(leader)
    }

    /// Spawns a child that looks like an orphan, and registers it during its grace period.
    async fn register_late(&mut self, group: u32) {
        let fate = Fate::random(&mut self.random);
        let command = self.command(fate, Some(group));
        let Ok(child) = self.population.spawn_on_main_thread(command) else {
            return;
        };
        let pid = child.id();
        while census::is_running(pid) || census::is_running(group) {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(self.random.millis(20)).await;
        if !census::is_zombie(pid) {
            return;
        }
        let Ok(handle) = self.reaper.register(pid) else {
            return;
        };
        drop(self.record(fate, handle));
        let mut registered = self.population.registered();
        if let Some(shim) = registered.iter_mut().rfind(|shim| shim.pid == pid) {
            // The reaper may have reaped it as an orphan before the registration.
            shim.may_be_unknown = true;
        }
    }

    /// Spawns and kills a shim whose tracer holds the zombie until the handles have resolved.
    async fn trace(&mut self) -> Option<ShimHandle> {
        let handle = self.spawn(Fate::Killed).await?;
        let pid = handle.id();
        let Some((tracer, stdin)) = spawn_tracer(pid) else {
            let _ = handle.start_kill();
            return Some(handle);
        };
        drop(self.register_child(tracer, Fate::Code(0)));
        let _ = handle.start_kill();
        let resolved = timeout(Duration::from_secs(5), handle.clone()).await;
        if resolved.is_err() {
            self.population.unresolved.fetch_add(1, Relaxed);
        }
        drop(stdin);
        while census::is_zombie(pid) {
            sleep(Duration::from_millis(1)).await;
        }
        Some(handle)
    }

    async fn kill(&mut self) -> Option<ShimHandle> {
        let handle = self.spawn(Fate::Killed).await?;
        sleep(self.random.millis(40)).await;
        let _ = handle.start_kill();
        Some(handle)
    }
}
