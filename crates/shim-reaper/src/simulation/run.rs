use std::any::Any;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use tokio_util::sync::CancellationToken;

use super::action::{Action, Step};
use super::config::{Config, INTERVAL, Spawning, long_grace};
use super::frame::Frame;
use super::world::{Flag, PIDS, World};
use crate::core::Core;
use crate::kernel::simulated::{Interrupts, Mechanism, Simulated};
use crate::shared::{Shared, StopRequest};
use crate::stats::Counters;

const MILLISECOND: Duration = Duration::from_millis(1);

pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) type Thread = Box<dyn FnOnce() + Send>;

/// One reaper on a simulated kernel, and all who use it.
pub(super) struct Simulation {
    pub(super) config: Config,
    pub(super) core: Arc<Core<Simulated>>,
    world: Mutex<World>,
    pub(super) frames: Mutex<Vec<Frame>>,
    /// `None` during a replay.
    pub(super) rng: Mutex<Option<Rng>>,
    /// `None` while it runs, and after it has ended.
    pub(super) worker: Mutex<Option<Task>>,
    pub(super) worker_flag: Arc<Flag>,
    /// Tasks that stop the processes, or shut the reaper down.
    pub(super) tasks: Mutex<Vec<Task>>,
    /// The threads that the reaper has started, and that have not run yet.
    pub(super) threads: Mutex<VecDeque<Thread>>,
    pub(super) this: Weak<Self>,
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation").finish_non_exhaustive()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Describes a panic by what [`catch_unwind`] returns for it.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = panic.downcast_ref::<&str>().copied();
    let message = message.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", message.unwrap_or("without a message"))
}

impl Simulation {
    /// Creates a simulation in a tokio runtime with a paused clock. With `rng` it chooses the
    /// interrupts; otherwise the steps have them.
    pub(super) fn new(config: Config, rng: Option<Rng>) -> Arc<Self> {
        let now = tokio::time::Instant::now().into_std();
        let mut shared = Shared::new(
            Simulated::starting_at(config.features, now),
            Counters::default(),
            CancellationToken::new(),
            INTERVAL,
            if config.features.lacks(Mechanism::OwnerGrace) {
                Duration::ZERO
            } else {
                config.grace
            },
            config.spawning == Spawning::EarlyStd,
            Some(StopRequest {
                token: CancellationToken::new(),
                grace: config.stop_grace,
            }),
        );
        shared.reap_all_orphans = config.reaps_all_orphans;
        let core = Arc::new(Core::new(shared));
        let exits = core.shared.subscribers.subscribe();
        let simulation = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            config,
            world: Mutex::new(World::new(exits, now)),
            core,
            frames: Mutex::default(),
            rng: Mutex::new(rng),
            worker: Mutex::default(),
            worker_flag: Arc::default(),
            tasks: Mutex::default(),
            threads: Mutex::default(),
        });
        let interrupts: Arc<dyn Interrupts> = simulation.clone();
        simulation
            .kernel()
            .set_interrupts(Arc::downgrade(&interrupts));
        simulation.start_worker();
        simulation
    }

    pub(super) fn kernel(&self) -> &Simulated {
        &self.core.shared.kernel
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Performs a step of the history. Returns it with the interrupts that took place. A panic is a
    /// violation.
    pub(super) async fn run(&self, step: Step) -> Step {
        let action = step.action;
        match self.catch_panic(self.perform_step(step)).await {
            Some(step) => step,
            None => self.end_all().unwrap_or_else(|| Step::new(action)),
        }
    }

    /// Returns `None`, and notes a violation, if the future panics.
    pub(super) async fn catch_panic<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let poll = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
            poll.map_or_else(
                |panic| {
                    self.world().fail(panic_message(&*panic));
                    Poll::Ready(None)
                },
                |poll| poll.map(Some),
            )
        })
        .await
    }

    async fn perform_step(&self, step: Step) -> Step {
        {
            let mut world = self.world();
            world.step += 1;
            world.pids_of_step = PIDS.filter(|pid| !self.kernel().is_free(*pid)).collect();
        }
        self.begin(&step);
        match step.action {
            Action::Advance { millis } => {
                for _ in 0..millis {
                    self.pass_time(MILLISECOND).await;
                    self.run_worker().await;
                }
            }
            Action::Stall { millis } => {
                self.pass_time(MILLISECOND * millis).await;
                self.expect_delay(INTERVAL);
            }
            action => {
                self.perform(action);
                tokio::task::yield_now().await;
            }
        }
        self.run_threads();
        let step = self.end(step.action);
        self.run_tasks();
        self.check();
        if self.config.features.lacks(Mechanism::ForeignWaitDetection) {
            let seen = &self.core.shared.foreign_wait_seen;
            seen.store(false, Ordering::Relaxed);
        }
        step
    }

    /// Allows a zombie to be late for this time, in addition to its grace period.
    pub(super) fn expect_delay(&self, delay: Duration) {
        let config = &self.config;
        let delay = delay + config.max_lost() + long_grace(config.grace);
        let late_until = self.kernel().time() + delay;
        let mut world = self.world();
        world.late_until = world.late_until.max(late_until);
    }

    /// Lets time pass until `done`, or for `limit` at most. Nothing interrupts the worker.
    pub(super) async fn wait_until(&self, limit: Duration, done: impl Fn(&Self) -> bool) {
        lock(&self.rng).take();
        let deadline = self.kernel().time() + limit;
        self.run_millisecond(Duration::ZERO).await;
        while !done(self) && self.kernel().time() < deadline && self.world().violation.is_none() {
            self.run_millisecond(MILLISECOND).await;
        }
    }

    async fn run_millisecond(&self, time: Duration) {
        let step = Step::new(Action::Advance { millis: 1 });
        self.begin(&step);
        self.pass_time(time).await;
        self.run_worker().await;
        self.run_threads();
        self.end(step.action);
        self.run_tasks();
        self.check();
    }

    async fn pass_time(&self, time: Duration) {
        self.kernel().pass_time(time);
        tokio::time::advance(time).await;
    }

    fn run_tasks(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.retain_mut(|task| {
            let poll = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            poll.is_pending()
        });
        lock(&self.tasks).append(&mut tasks);
    }

    /// Returns whether another thread could call the reaper now without being blocked by a lock.
    pub(super) fn is_unlocked(&self) -> bool {
        let registrations = &self.world().registrations;
        !self.core.shared.directory.is_locked()
            && !registrations.iter().any(|one| one.shim.is_locked())
    }
}
