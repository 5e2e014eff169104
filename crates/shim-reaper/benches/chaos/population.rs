use std::future::Future;
use std::io;
use std::mem;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use shim_reaper::{ShimHandle, ShimReaper, SpawnOptions};
use tokio::time::{sleep, timeout};

use crate::census;
use crate::child::{self, Fate, Owner, Registered, spawn_parent, spawn_tracer};
use crate::random::Random;
use crate::recycled_pid::exits_with_pid;

/// The processes that the tasks of a round have started.
pub(crate) struct Population {
    rules: Rules,
    registered: Mutex<Vec<Registered>>,
    owners: Mutex<Vec<Owner>>,
    main_thread: mpsc::Sender<SpawnRequest>,
    recycled: AtomicU64,
    /// Handles that are awaited by a waker that panics.
    polled: Mutex<Vec<ShimHandle>>,
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
    /// No other code may be the owner of a child, because all are reaped before it could wait.
    pub(crate) reaper_only: bool,
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
            recycled: AtomicU64::new(0),
            polled: Mutex::default(),
            unresolved: AtomicU64::new(0),
        }
    }

    pub(crate) fn unresolved(&self) -> u64 {
        self.unresolved.load(Relaxed)
    }

    pub(crate) fn recycled(&self) -> u64 {
        self.recycled.load(Relaxed)
    }

    fn spawn_on_main_thread(&self, command: Command) -> io::Result<Child> {
        let (reply, child) = mpsc::channel();
        self.main_thread.send((command, reply)).unwrap();
        child.recv().unwrap()
    }

    pub(crate) fn registered(&self) -> MutexGuard<'_, Vec<Registered>> {
        self.registered.lock().unwrap()
    }

    pub(crate) fn drop_handles(&self) {
        self.polled.lock().unwrap().clear();
        for shim in self.registered().iter_mut() {
            shim.handle = None;
        }
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

struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        // Without the panic hook, which would print it.
        resume_unwind(Box::new("a waker panics"));
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
        if self.random.one_in(20) {
            // Blocks the tokio runtime.
            thread::sleep(self.random.millis(30));
        }
        let fate = Fate::random(&mut self.random);
        let rules = self.population.rules;
        let kinds = if rules.reaper_only { 3 } else { 8 };
        let handle = match self.random.below(kinds) {
            0 => self.spawn(fate).await,
            1 => self.pipeline(fate).await,
            2 => self.kill().await,
            3 => self.register_new_child(fate),
            4 => self.register(fate, None).await,
            5 => self.attach(fate).await,
            6 if rules.owners_wait => self.recycle().await,
            7 if rules.tracers => self.trace().await,
            _ => self.spawn(fate).await,
        };
        let Some(mut handle) = handle else { return };
        match self.random.below(5) {
            // Usually cancelled by the timeout.
            0 => drop(timeout(self.random.millis(5), handle).await),
            1 => drop(handle.await),
            2 => {
                let waker = Waker::from(Arc::new(PanickingWaker));
                let _ = Pin::new(&mut handle).poll(&mut Context::from_waker(&waker));
                self.population.polled.lock().unwrap().push(handle);
            }
            // Without the panic hook, which would print it.
            3 => resume_unwind(Box::new("a task panics while it has a handle")),
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
            may_be_unknown: self.population.rules.reaper_only
                && !self.population.rules.keeps_statuses,
            attached: false,
            handle: (keep || self.random.one_in(2)).then(|| handle.clone()),
        });
        handle
    }

    /// Allows the latest shim with this pid to end without a status that only the kernel may keep.
    fn allow_unknown(&self, pid: u32) {
        let mut registered = self.population.registered();
        if let Some(shim) = registered.iter_mut().rfind(|shim| shim.pid == pid) {
            shim.may_be_unknown = !self.population.rules.keeps_statuses;
        }
    }

    async fn spawn(&mut self, fate: Fate) -> Option<ShimHandle> {
        let command = self.command(fate, None);
        let handle = self.reaper.spawn(command).ok()?;
        Some(self.record(fate, handle))
    }

    fn register_new_child(&mut self, fate: Fate) -> Option<ShimHandle> {
        let child = child::spawn(&mut self.command(fate, None));
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
        let delay = self.random_delay();
        if self.population.rules.owners_wait {
            self.allow_unknown(handle.id());
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
        let options = SpawnOptions::new().process_group(0);
        let command = if self.population.rules.orphans {
            fate.command_with_orphan(&mut self.random)
        } else {
            fate.command(&mut self.random)
        };
        let leader = self.reaper.spawn_with(command, options).ok()?;
        let leader = self.record(fate, leader);
        if self.population.rules.reaper_only {
            return Some(leader);
        }
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

    /// Registers a child that its owner reaps, and then another child that gets the same pid.
    async fn recycle(&mut self) -> Option<ShimHandle> {
        let fate = Fate::random(&mut self.random);
        let child = child::spawn(&mut self.command(fate, None));
        let pid = child.id();
        if let Ok(handle) = self.reaper.register(pid) {
            self.record(fate, handle);
            self.allow_unknown(pid);
        }
        let owner = Owner::start(child, fate, None);
        while !owner.has_waited() {
            sleep(Duration::from_millis(1)).await;
        }
        self.population.owners.lock().unwrap().push(owner);
        if !self.population.rules.keeps_statuses {
            // Without pidfds, the start time distinguishes the two, in units of 10 ms.
            sleep(Duration::from_millis(20)).await;
        }
        let code = self.random.below(256) as i32;
        let pid = exits_with_pid(pid, code)?;
        self.population.recycled.fetch_add(1, Relaxed);
        let new = self.reaper.register(pid);
        let owner = Owner::of_pid(pid, code);
        self.population.owners.lock().unwrap().push(owner);
        let new = self.record(Fate::Code(code), new.ok()?);
        self.allow_unknown(pid);
        Some(new)
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
        let resolved = timeout(census::TIMEOUT, handle.clone()).await;
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
        match self.random.below(3) {
            0 => drop(handle.kill().await),
            1 => {
                // Usually cancelled while it waits.
                let grace = self.random.millis(10);
                drop(timeout(self.random.millis(10), handle.stop(grace)).await);
                let _ = handle.start_kill();
            }
            _ => {
                let _ = handle.start_kill();
            }
        }
        Some(handle)
    }
}
