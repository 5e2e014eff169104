use std::io;
use std::os::fd::OwnedFd;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::ReaperCounter;
use crate::core::Core;
use crate::drive::{Drive, restart_on_panic};
use crate::kernel::Linux;
use crate::parker::Parker;
use crate::pipe_runtime::PipeRuntime;
use crate::readiness::{Host, TokioHost};
use crate::shared::Shared;
use crate::shim::Shim;
use crate::stop;
use crate::thread::spawn_thread;
use crate::timers::Sleep;

/// The longest pause between two attempts of the dedicated thread to create its descriptors.
const MAX_RETRY_INTERVAL: Duration = Duration::from_millis(250);

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
        if !shim.state().is_watched {
            self.shared().directory.lock().request_check(shim);
        }
        self.core.reap_ready_blocking();
    }

    /// Returns a tokio runtime that drives the pipes of shims.
    pub(crate) fn runtime(&self) -> io::Result<Handle> {
        let runtime = self.tokio_runtime().clone();
        runtime.map_or_else(|| self.pipe_runtime.start(), Ok)
    }

    /// Returns a future that is ready after `time` by the clock of the worker. That of its tokio runtime, or of
    /// the runtime of the caller, may be paused.
    pub(crate) fn sleep(&self, time: Duration) -> Sleep<'_> {
        let runtime = self.tokio_runtime().clone();
        let now = runtime.map_or_else(
            || std::time::Instant::now().into(),
            |runtime| {
                let _entered = runtime.enter();
                Instant::now()
            },
        );
        self.shared().sleep_until(now.checked_add(time))
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
        let mut is_first = true;
        while !self.can_stop() && !self.shared().is_closing() {
            match Parker::new(Arc::clone(&self.core)) {
                Ok(parker) => return run_on_thread(&alive, &parker),
                Err(error) if is_first => {
                    tracing::error!(%error, "the thread of the reaper cannot wait for events; it retries");
                    is_first = false;
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
