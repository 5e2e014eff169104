use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use tokio_util::sync::CancellationToken;

use super::action::{Action, Interrupt, Step};
use super::config::{Config, INTERVAL, Spawning, long_grace};
use super::world::{Flag, PIDS, World};
use crate::Signal;
use crate::core::Core;
use crate::drive::{Drive, restart_on_panic};
use crate::kernel::simulated::{Failure, Interrupts, Simulated, SimulatedEvents};
use crate::readiness::{Alarm, Host, KernelEvents, TokioAlarm};
use crate::shared::{Shared, StopRequest};
use crate::stats::Counters;

const MILLISECOND: Duration = Duration::from_millis(1);

/// How many interrupts may interrupt each other.
const MAX_DEPTH: usize = 3;

/// How often the worker may run without a pause. A sweep yields after each of its slices.
const MAX_POLLS: u32 = 200;

/// How many system calls one step may make.
const MAX_CALLS: u32 = 100_000;

pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

type Thread = Box<dyn FnOnce() + Send>;

/// One reaper on a simulated kernel, and all who use it.
pub(super) struct Simulation {
    pub(super) config: Config,
    pub(super) core: Arc<Core<Simulated>>,
    world: Mutex<World>,
    frames: Mutex<Vec<Frame>>,
    /// `None` during a replay.
    rng: Mutex<Option<Rng>>,
    /// `None` while it runs, and after it has ended.
    worker: Mutex<Option<Task>>,
    worker_flag: Arc<Flag>,
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

/// A step that is being performed.
#[derive(Debug, Default)]
struct Frame {
    runs_worker: bool,
    calls: u32,
    planned: VecDeque<(u32, Interrupt)>,
    performed: Vec<(u32, Interrupt)>,
}

/// The worker of the reaper, as `Worker` is in production.
struct SimulatedWorker(Arc<Core<Simulated>>);

impl Drive for SimulatedWorker {
    type Kernel = Simulated;

    fn core(&self) -> &Arc<Core<Simulated>> {
        &self.0
    }

    fn can_stop(&self) -> bool {
        false
    }
}

impl Host for SimulatedWorker {
    fn kernel_events(&self) -> impl KernelEvents {
        SimulatedEvents::new(&self.0.shared.kernel, INTERVAL)
    }

    fn alarm(&self) -> impl Alarm {
        TokioAlarm::new()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Simulation {
    /// Creates a simulation in a tokio runtime with a paused clock. With `rng` it chooses the
    /// interrupts; otherwise the steps have them.
    pub(super) fn new(config: Config, rng: Option<Rng>) -> Arc<Self> {
        let now = tokio::time::Instant::now().into_std();
        let core = Arc::new(Core::new(Shared::new(
            Simulated::starting_at(config.features, now),
            Counters::default(),
            CancellationToken::new(),
            INTERVAL,
            config.grace,
            config.spawning == Spawning::EarlyStd,
            Some(StopRequest {
                token: CancellationToken::new(),
                grace: config.stop_grace,
            }),
        )));
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

    /// Performs a step of the history. Returns it with the interrupts that took place.
    pub(super) async fn run(&self, step: Step) -> Step {
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
        step
    }

    fn begin(&self, step: &Step) {
        lock(&self.frames).push(Frame {
            planned: step.interrupts.iter().cloned().collect(),
            ..Frame::default()
        });
    }

    fn end(&self, action: Action) -> Step {
        let frame = lock(&self.frames).pop().unwrap_or_default();
        Step {
            action,
            interrupts: frame.performed,
        }
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

    /// Runs the worker until it waits.
    async fn run_worker(&self) {
        for _ in 0..MAX_POLLS {
            if !self.poll_worker() {
                return;
            }
            tokio::task::yield_now().await;
        }
        self.world().fail("the worker does not stop to run".into());
    }

    pub(super) fn start_worker(&self) {
        let worker = SimulatedWorker(Arc::clone(&self.core));
        let task = async move { restart_on_panic(&worker, &worker).await };
        // The worker may run often while a thread blocks, which is one step for tokio.
        *lock(&self.worker) = Some(Box::pin(tokio::task::unconstrained(task)));
        self.wake_worker();
    }

    /// Drops the task of the worker, as its tokio runtime does.
    pub(super) fn drop_worker(&self) {
        let task = lock(&self.worker).take();
        drop(task);
    }

    pub(super) fn has_worker(&self) -> bool {
        lock(&self.worker).is_some()
    }

    fn wake_worker(&self) {
        Waker::from(Arc::clone(&self.worker_flag)).wake();
    }

    /// Polls the worker if it was woken. Returns whether it was.
    pub(super) fn poll_worker(&self) -> bool {
        let Some(mut task) = lock(&self.worker).take() else {
            return false;
        };
        let woken = self.worker_flag.take();
        let mut poll = Poll::Pending;
        if woken {
            self.set_runs_worker(true);
            let waker = Waker::from(Arc::clone(&self.worker_flag));
            poll = task.as_mut().poll(&mut Context::from_waker(&waker));
            self.set_runs_worker(false);
        }
        if poll.is_pending() {
            *lock(&self.worker) = Some(task);
        }
        woken
    }

    fn set_runs_worker(&self, runs_worker: bool) {
        if let Some(frame) = lock(&self.frames).last_mut() {
            frame.runs_worker = runs_worker;
        }
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

    /// Returns what happens before the current system call.
    fn next_interrupt(&self, is_first: bool) -> Option<(u32, Interrupt)> {
        let mut frames = lock(&self.frames);
        let depth = frames.len();
        let frame = frames.last_mut()?;
        frame.calls += u32::from(is_first);
        let call = frame.calls;
        let runs_worker = frame.runs_worker;
        let mut rng = lock(&self.rng);
        let Some(rng) = rng.as_mut() else {
            while frame.planned.front().is_some_and(|(at, _)| *at <= call) {
                let planned = frame.planned.pop_front()?;
                if runs_worker || !matches!(planned.1, Interrupt::Panic) {
                    return Some(planned);
                }
            }
            return None;
        };
        drop(frames);
        // Several things may happen before one call.
        let odds = if is_first { 8 * depth } else { 3 };
        if depth > MAX_DEPTH || rng.usize(0..odds) != 0 {
            return None;
        }
        if self.config.panics && runs_worker && rng.u32(0..8) == 0 {
            return Some((call, Interrupt::Panic));
        }
        let action = self.choose(rng, true)?;
        Some((call, Interrupt::Step(Step::new(action))))
    }

    fn has_called_too_often(&self) -> bool {
        let frames = lock(&self.frames);
        frames.last().is_some_and(|frame| frame.calls > MAX_CALLS)
    }

    fn record(&self, call: u32, interrupt: Interrupt) {
        if let Some(frame) = lock(&self.frames).last_mut() {
            frame.performed.push((call, interrupt));
        }
    }
}

impl Interrupts for Simulation {
    fn before(&self, call: &'static str) {
        if self.has_called_too_often() {
            self.world().fail(format!("the reaper repeats {call}"));
            resume_unwind(Box::new("too many calls"));
        }
        let mut is_first = true;
        while let Some((call, interrupt)) = self.next_interrupt(is_first) {
            is_first = false;
            match interrupt {
                Interrupt::Panic => {
                    self.record(call, Interrupt::Panic);
                    self.note_panic();
                    // Without the panic hook, which would print it.
                    resume_unwind(Box::new("injected"));
                }
                Interrupt::Step(step) => {
                    self.begin(&step);
                    self.perform(step.action);
                    let performed = self.end(step.action);
                    self.record(call, Interrupt::Step(performed));
                }
            }
        }
    }

    fn block(&self, time: Duration) {
        self.kernel().pass_time(time);
        // Sets the clock. The timers of tokio do not expire before the step ends, only those of the
        // simulated kernel.
        let mut advance = pin!(tokio::time::advance(time));
        let _ = advance
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        let needs_tokio = !self.config.is_prompt() || !self.config.grace.is_zero();
        if needs_tokio || !self.has_worker() {
            self.expect_delay(INTERVAL);
        }
        if !self.may_stop() {
            return;
        }
        for _ in 0..MAX_POLLS {
            if !self.poll_worker() {
                break;
            }
        }
        self.run_threads();
        self.check();
    }

    fn fork(&self) -> Option<usize> {
        self.fork_child()
    }

    fn start_thread(&self, run: Thread) -> io::Result<()> {
        if self.may_stop() {
            self.kernel().fails(Failure::Thread)?;
        }
        lock(&self.threads).push_back(run);
        Ok(())
    }

    fn reaped(&self, process: usize, is_orphan: bool) {
        self.check_reap(process, is_orphan);
    }

    fn signalled(&self, process: usize, signal: Signal) {
        self.check_signal(process, signal);
    }
}
