use std::any::Any;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::{self, Handle, Runtime};
use tokio::time::{Instant, sleep, sleep_until};

use crate::core::Core;
use crate::failpoint::fail_point;
use crate::intake::Intake;
use crate::kernel::Linux;
use crate::readiness::Readiness;

/// After this many panics in a row the pauses between replacements stop growing.
const MAX_DOUBLINGS: u32 = 5;

/// The longest pause of a dedicated thread that lacks the descriptors for a tokio runtime.
const RUNTIME_RETRY: Duration = Duration::from_millis(250);

/// The task that sweeps, and what is needed to put another in its place.
#[derive(Debug)]
pub(crate) struct Worker {
    core: Arc<Core<Linux>>,
    alive: AtomicBool,
    /// Set when the last `ShimReaper` is gone: nobody can register any more.
    abandoned: AtomicBool,
    /// The runtime that the present worker runs on, or the last one did.
    runtime: Mutex<Handle>,
    /// Set while no thread could be made to replace a lost runtime.
    thread_refused: AtomicBool,
}

impl Worker {
    /// # Panics
    ///
    /// As tokio does when the runtime lacks its time or I/O driver.
    pub(crate) fn start_on(core: Arc<Core<Linux>>, handle: &Handle) -> Arc<Self> {
        let worker = Arc::new(Self::new(core, handle.clone()));
        {
            let _entered = handle.enter();
            drop(sleep(Duration::ZERO));
            drop(worker.readiness());
        }
        worker.claim();
        handle.spawn(supervise(Alive(Arc::clone(&worker))));
        worker
    }

    pub(crate) fn start_dedicated(core: Arc<Core<Linux>>) -> io::Result<Arc<Self>> {
        let runtime = dedicated_runtime()?;
        let worker = Arc::new(Self::new(core, runtime.handle().clone()));
        worker.claim();
        let alive = Arc::clone(&worker);
        spawn_thread(move || runtime.block_on(supervise(Alive(alive))))?;
        Ok(worker)
    }

    fn new(core: Arc<Core<Linux>>, runtime: Handle) -> Self {
        Self {
            core,
            alive: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            runtime: Mutex::new(runtime),
            thread_refused: AtomicBool::new(false),
        }
    }

    pub(crate) fn core(&self) -> &Core<Linux> {
        &self.core
    }

    pub(crate) fn intake(&self) -> &Intake<Linux> {
        &self.core.intake
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire) && !self.intake().is_closing()
    }

    pub(crate) fn runtime(&self) -> Handle {
        self.last_runtime().clone()
    }

    /// Goes on in a thread of its own if the runtime that had the worker is gone. The caller's
    /// runtime would not do: it may have no drivers, or never be driven again. Does what a worker
    /// would have done if the reaper was to shut down in between.
    pub(crate) fn ensure_alive(self: &Arc<Self>) {
        if self.alive.load(Ordering::Acquire) {
            return;
        }
        if self.intake().is_closing() {
            self.core.try_close();
        } else if self.claim() {
            self.move_to_thread();
        }
    }

    fn move_to_thread(self: &Arc<Self>) {
        let worker = Arc::clone(self);
        match spawn_thread(move || worker.run_on_this_thread()) {
            Ok(()) => {
                self.thread_refused.store(false, Ordering::Relaxed);
                self.intake().counters.respawned();
                tracing::warn!(
                    "the tokio runtime that drove the reaper is gone; a dedicated thread drives it now"
                );
            }
            Err(error) => {
                self.alive.store(false, Ordering::Release);
                if !self.thread_refused.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        %error,
                        "the tokio runtime that drove the reaper is gone and a dedicated thread \
                         cannot be started; the next call to the reaper or a handle tries again"
                    );
                }
            }
        }
    }

    fn run_on_this_thread(self: Arc<Self>) {
        let alive = Alive(Arc::clone(&self));
        let mut logged = false;
        while !self.has_nothing_left_to_do() && !self.intake().is_closing() {
            match dedicated_runtime() {
                Ok(runtime) => {
                    *self.last_runtime() = runtime.handle().clone();
                    return runtime.block_on(supervise(alive));
                }
                Err(error) if !logged => {
                    tracing::error!(%error, "the reaper's thread cannot start a tokio runtime yet");
                    logged = true;
                }
                Err(_) => {}
            }
            thread::sleep(self.intake().sweep_interval.min(RUNTIME_RETRY));
        }
    }

    /// Whether the caller is to put a worker in place; there is one already otherwise.
    fn claim(&self) -> bool {
        !self.alive.swap(true, Ordering::AcqRel)
    }

    fn last_runtime(&self) -> MutexGuard<'_, Handle> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.intake().attention.notify_one();
    }

    fn has_nothing_left_to_do(&self) -> bool {
        self.abandoned.load(Ordering::Acquire) && self.core.is_idle()
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::new(&self.intake().kernel, self.intake().sweep_interval)
    }
}

fn dedicated_runtime() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

fn spawn_thread(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("shim-reaper".to_owned());
    thread.spawn(run).map(drop)
}

/// The claim to be the one worker. However it ends, by return or by being dropped with its runtime,
/// work that is left goes on elsewhere: nobody may call the reaper again.
#[derive(Debug)]
struct Alive(Arc<Worker>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::Release);
        if !self.0.has_nothing_left_to_do() {
            self.0.ensure_alive();
        }
    }
}

/// Replaces the worker whenever it panics, at once the first time, later and later after that.
async fn supervise(alive: Alive) {
    let worker = &alive.0;
    let mut failures = 0;
    while let Err(panic) = AssertUnwindSafe(work(worker, &mut failures))
        .catch_unwind()
        .await
    {
        failures += 1;
        let pause = match failures {
            1 => Duration::ZERO,
            _ => worker.intake().sweep_interval * 2_u32.pow((failures - 2).min(MAX_DOUBLINGS)),
        };
        worker.intake().counters.respawned();
        tracing::error!(
            panic = message(&*panic),
            failures,
            ?pause,
            "the reaper's worker panicked and is replaced"
        );
        let pause = sleep(pause);
        if worker.intake().is_closing() {
            pause.await;
        } else {
            // A shutdown is not kept waiting.
            tokio::select! {
                () = worker.intake().token.cancelled() => {}
                () = pause => {}
            }
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("not a text")
}

async fn work(worker: &Worker, failures: &mut u32) {
    let core = worker.core();
    let intake = worker.intake();
    let mut effects = core.effects();
    let mut readiness = worker.readiness();
    let mut next_sweep = Instant::now();
    let mut is_due = true;
    let mut cancelled = pin!(intake.token.cancelled());
    let mut attention = pin!(intake.attention.notified());
    let mut timer = pin!(sleep_until(next_sweep));
    let mut deadline = core.collect(&mut effects).await;
    loop {
        fail_point!("shim_reaper::work");
        if is_due {
            deadline = core.sweep(&mut effects).await;
            effects.close_pidfds();
            *failures = 0;
            next_sweep = (next_sweep + intake.sweep_interval).max(Instant::now());
            readiness.complete(intake.sweep_interval);
        }
        if worker.has_nothing_left_to_do() {
            return;
        }
        let until_sweep = (!readiness.ticks()).then_some(next_sweep);
        let alarm = deadline
            .map(Instant::from)
            .into_iter()
            .chain(until_sweep)
            .min();
        if let Some(alarm) = alarm.filter(|alarm| timer.deadline() != *alarm) {
            timer.as_mut().reset(alarm);
        }
        let collected = tokio::select! {
            biased;
            deadline = readiness.collect_when_ready(core, &mut effects, alarm) => deadline,
            () = &mut cancelled => {
                core.close().await;
                return;
            }
            () = &mut timer, if alarm.is_some() => None,
            () = &mut attention => {
                attention.set(intake.attention.notified());
                None
            }
        };
        deadline = match collected {
            Some(deadline) => deadline,
            None => core.collect(&mut effects).await,
        };
        is_due = intake.kernel.take_tick() || until_sweep.is_some_and(|at| at <= Instant::now());
    }
}
