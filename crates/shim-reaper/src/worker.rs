use std::any::Any;
use std::future::{pending, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::pin::pin;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::ReaperCounter;
use crate::core::Core;
use crate::kernel::{Linux, ProcessTable};
use crate::outbox::Outbox;
use crate::parker::Parker;
use crate::pipe_runtime::PipeRuntime;
use crate::readiness::{Alarm, Host, KernelEvents, TokioHost, reap_when_ready};
use crate::shared::Shared;
use crate::shim::Shim;
use crate::stop;
use crate::thread::spawn_thread;

/// The number of times that the backoff after consecutive panics doubles.
const MAX_BACKOFF_DOUBLINGS: u32 = 5;

/// The longest pause between two attempts of the dedicated thread to create its descriptors.
const MAX_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// What [`restart_on_panic`] drives: the worker of a reaper, or that of the simulation.
pub(crate) trait Drive {
    type Kernel: ProcessTable;

    fn core(&self) -> &Arc<Core<Self::Kernel>>;

    fn shared(&self) -> &Shared<Self::Kernel> {
        &self.core().shared
    }

    /// Returns whether the worker may end.
    fn can_stop(&self) -> bool;

    /// Stops the shims and shuts down the reaper when the embedder requests it.
    async fn stop_on_request(&self) {
        let Some(request) = &self.shared().stop_request else {
            return pending().await;
        };
        request.token.cancelled().await;
        stop::shutdown_stopping_on_thread(self.core(), request.grace).await;
    }

    /// Shuts down the reaper after its token was cancelled.
    async fn shut_down(&self) {
        stop::shutdown_on_thread(self.core()).await;
    }
}

/// The task that drives the reaper, and the means to replace it.
#[derive(Debug)]
pub(crate) struct Worker {
    core: Arc<Core<Linux>>,
    /// The pid of the process that created the worker. A forked child has a copy, and must not use
    /// it.
    owner_pid: u32,
    alive: AtomicBool,
    /// Set when the last `ShimReaper` is dropped; no shim can be registered afterwards.
    abandoned: AtomicBool,
    /// The tokio runtime of the worker; `None` if the worker runs on a thread.
    runtime: Mutex<Option<Handle>>,
    pipe_runtime: PipeRuntime,
    /// Set after a failure to start the dedicated thread has been logged.
    thread_failure_logged: AtomicBool,
}

impl Worker {
    /// Starts the worker as a task of the given tokio runtime.
    ///
    /// # Panics
    ///
    /// Panics if the tokio runtime has no time or I/O driver.
    pub(crate) fn start_on(core: Arc<Core<Linux>>, handle: &Handle) -> Arc<Self> {
        let worker = Arc::new(Self::new(core, Some(handle.clone())));
        {
            let _entered = handle.enter();
            // These panic without the drivers.
            let host = worker.tokio_host();
            drop(host.alarm());
            drop(host.kernel_events());
        }
        worker.try_claim();
        handle.spawn(run_on_tokio(AliveGuard(Arc::clone(&worker))));
        worker
    }

    pub(crate) fn start_dedicated(core: Arc<Core<Linux>>) -> io::Result<Arc<Self>> {
        let parker = Parker::new(Arc::clone(&core))?;
        let worker = Arc::new(Self::new(core, None));
        worker.try_claim();
        let alive = Arc::clone(&worker);
        spawn_thread(move || run_on_thread(&AliveGuard(alive), &parker))?;
        Ok(worker)
    }

    fn new(core: Arc<Core<Linux>>, runtime: Option<Handle>) -> Self {
        Self {
            core,
            owner_pid: process::id(),
            alive: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            runtime: Mutex::new(runtime),
            pipe_runtime: PipeRuntime::default(),
            thread_failure_logged: AtomicBool::new(false),
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core<Linux>> {
        &self.core
    }

    pub(crate) fn shared(&self) -> &Shared<Linux> {
        &self.core.shared
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire) && !self.shared().is_closing()
    }

    /// Does what the worker does for this shim, in case the worker does not run.
    pub(crate) fn check_blocking(&self, shim: &Arc<Shim<OwnedFd>>) {
        if shim.state().pidfd.is_none() {
            self.shared().directory.lock().request_check(shim);
        }
        self.core.reap_ready_blocking();
    }

    /// Returns a tokio runtime that drives the pipes of shims.
    pub(crate) fn runtime(&self) -> io::Result<Handle> {
        let runtime = self.tokio_runtime().clone();
        runtime.map_or_else(|| self.pipe_runtime.start(), Ok)
    }

    /// Moves the worker to a dedicated thread if its tokio runtime was dropped. The caller's tokio
    /// runtime may have no drivers, or may never run again. If the reaper is shutting down, does the
    /// final drain instead.
    pub(crate) fn ensure_alive(self: &Arc<Self>) {
        if self.alive.load(Ordering::Acquire) || self.is_forked_copy() {
            return;
        }
        if !self.shared().is_closing() {
            if self.try_claim() {
                self.move_to_thread();
            }
        } else if self.shared().killed_children().is_empty() {
            self.core.try_close();
        } else if self.try_claim() {
            let core = Arc::clone(&self.core);
            if spawn_thread(move || drop(stop::shutdown(&core))).is_err() {
                self.core.try_close();
            }
        }
    }

    fn move_to_thread(self: &Arc<Self>) {
        let worker = Arc::clone(self);
        match spawn_thread(move || worker.run_on_this_thread()) {
            Ok(()) => {
                *self.tokio_runtime() = None;
                self.thread_failure_logged.store(false, Ordering::Relaxed);
                self.shared().counters.increment(ReaperCounter::Respawns);
                tracing::warn!(
                    "the tokio runtime of the reaper was dropped; a dedicated thread took over"
                );
            }
            Err(error) => {
                self.alive.store(false, Ordering::Release);
                if !self.thread_failure_logged.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        %error,
                        "the tokio runtime of the reaper was dropped and a dedicated thread cannot be \
                         started; the next use of the reaper or of a handle retries"
                    );
                }
            }
        }
    }

    fn run_on_this_thread(self: Arc<Self>) {
        let alive = AliveGuard(Arc::clone(&self));
        let mut logged = false;
        while !self.can_stop() && !self.shared().is_closing() {
            match Parker::new(Arc::clone(&self.core)) {
                Ok(parker) => return run_on_thread(&alive, &parker),
                Err(error) if !logged => {
                    tracing::error!(%error, "the thread of the reaper cannot wait for events; it retries");
                    logged = true;
                }
                Err(_) => {}
            }
            self.core.sweep_blocking();
            thread::sleep(self.shared().sweep_interval.min(MAX_RETRY_INTERVAL));
        }
    }

    /// Returns true if the caller has to start the worker, false if one is alive.
    fn try_claim(&self) -> bool {
        !self.alive.swap(true, Ordering::AcqRel)
    }

    fn tokio_host(&self) -> TokioHost<'_> {
        TokioHost {
            kernel: &self.shared().kernel,
            sweep_interval: self.shared().sweep_interval,
        }
    }

    fn tokio_runtime(&self) -> MutexGuard<'_, Option<Handle>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.shared().wake_worker.notify_one();
    }

    pub(crate) fn is_forked_copy(&self) -> bool {
        process::id() != self.owner_pid
    }

    /// Returns whether a worker has work to do before the next call of the reaper or a handle.
    fn is_needed(&self) -> bool {
        let shared = self.shared();
        let is_awaited =
            || shared.is_closing() || shared.reap_all_orphans || shared.subscribers.has_any();
        !self.core.is_idle() || (!self.abandoned.load(Ordering::Acquire) && is_awaited())
    }
}

impl Drive for Worker {
    type Kernel = Linux;

    fn core(&self) -> &Arc<Core<Linux>> {
        &self.core
    }

    fn can_stop(&self) -> bool {
        self.abandoned.load(Ordering::Acquire) && self.core.is_idle()
    }
}

/// Marks the worker as alive. If it is dropped with its tokio runtime while work is left, a
/// dedicated thread takes over at once, because the embedder may never call the reaper again. If no
/// work is left, the next call starts that thread.
#[derive(Debug)]
struct AliveGuard(Arc<Worker>);

impl Drop for AliveGuard {
    fn drop(&mut self) {
        // In a forked child, the locks may stay locked for ever: their threads do not exist there.
        if self.0.is_forked_copy() {
            return;
        }
        self.0.alive.store(false, Ordering::Release);
        if self.0.is_needed() {
            self.0.ensure_alive();
        }
    }
}

async fn run_on_tokio(alive: AliveGuard) {
    let worker = &*alive.0;
    restart_on_panic(worker, &worker.tokio_host()).await;
}

fn run_on_thread(alive: &AliveGuard, parker: &Parker) {
    parker.block_on(restart_on_panic(&*alive.0, parker));
}

/// Runs the worker and restarts it after a panic, at once the first time, then with exponential
/// backoff.
pub(crate) async fn restart_on_panic(worker: &impl Drive, host: &impl Host) {
    let mut failures = 0;
    while let Err(panic) = catch_unwind(work(worker, host, &mut failures)).await {
        failures += 1;
        let backoff = if failures == 1 {
            Duration::ZERO
        } else {
            let doublings = (failures - 2).min(MAX_BACKOFF_DOUBLINGS);
            worker.shared().sweep_interval * 2_u32.pow(doublings)
        };
        worker.shared().counters.increment(ReaperCounter::Respawns);
        tracing::error!(
            panic = panic_message(&*panic),
            failures,
            ?backoff,
            "the worker of the reaper panicked and is restarted"
        );
        let (mut alarm, end) = (host.alarm(), Instant::now() + backoff);
        let pause = poll_fn(|cx| alarm.poll_expired(cx, end));
        if worker.shared().is_closing() {
            pause.await;
        } else {
            // A shutdown does not wait for the backoff.
            tokio::select! {
                () = worker.shared().token.cancelled() => {}
                () = pause => {}
            }
        }
    }
}

/// Runs a future. Returns the payload of its panic if it panics.
async fn catch_unwind<T>(future: impl Future<Output = T>) -> thread::Result<T> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let poll = AssertUnwindSafe(|| future.as_mut().poll(cx));
        match panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("non-string panic payload")
}

async fn work(worker: &impl Drive, host: &impl Host, failures: &mut u32) {
    let core = worker.core();
    let shared = worker.shared();
    let mut outbox = Outbox::new();
    let mut events = host.kernel_events();
    let mut alarm = host.alarm();
    let mut next_sweep = Instant::now();
    // When to sweep although the timer of the epoll has not expired.
    let mut fallback = next_sweep;
    let mut sweep_due = true;
    let mut cancelled = pin!(shared.token.cancelled());
    let mut stopped = pin!(worker.stop_on_request());
    let mut woken = pin!(shared.wake_worker.notified());
    let mut deadline = core.reap_ready(&mut outbox).await;
    loop {
        fail_point!("shim_reaper::work");
        if sweep_due {
            deadline = core.sweep(&mut outbox).await;
            outbox.close_pidfds();
            *failures = 0;
            let now = Instant::now();
            next_sweep = (next_sweep + shared.sweep_interval).max(now);
            fallback = now + 2 * shared.sweep_interval;
            events.retry_setup(shared.sweep_interval);
        }
        if worker.can_stop() {
            return;
        }
        let sweep_at = if events.has_timer() {
            fallback
        } else {
            next_sweep
        };
        let deadlines = [deadline.map(Instant::from), shared.timers.next_deadline()];
        let wake_at = deadlines.into_iter().flatten().fold(sweep_at, Instant::min);
        let (is_event, next) = tokio::select! {
            biased;
            deadline = reap_when_ready(&events, core, &mut outbox, wake_at) => (true, deadline),
            () = &mut cancelled => {
                worker.shut_down().await;
                return;
            }
            () = &mut stopped => return,
            () = poll_fn(|cx| alarm.poll_expired(cx, wake_at)) => (false, None),
            () = &mut woken => {
                woken.set(shared.wake_worker.notified());
                (false, None)
            }
        };
        deadline = match next {
            Some(deadline) => deadline,
            None => core.reap_ready(&mut outbox).await,
        };
        shared.timers.take_expired(&mut outbox.wakers);
        outbox.deliver();
        sweep_due = events.take_tick();
        // Tokio should have reported the timer of the epoll before.
        if sweep_at <= Instant::now() || (sweep_due && !is_event) {
            sweep_due = true;
            // A forked child that drops its copy of the tokio runtime removes the epoll of the
            // reaper from the epoll of tokio, which both processes share.
            events.register_again(shared.sweep_interval);
        }
    }
}
