use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shim_reaper::{MetricsSink, ReaperStats, ShimReaper, ShutdownReport};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::{Generator, Ulid};
use vmm_protocol::{FileError, is_resource_exhaustion};

use crate::boxes::Boxes;
use crate::driver::Driver;
use crate::error::message_of;
use crate::event::Herald;
use crate::health::Probes;
use crate::home::{Home, HomeLock};
use crate::process::{Litter, Strays, caretaker, keep_collecting};
use crate::remove_tree::{Progress, remove_tree};
use crate::{
    RuntimeError, RuntimeMetrics, RuntimeMetricsStorage, RuntimeOptions, ShimController,
    ShimProgram,
};

/// How long one removed box may keep the others waiting for their removal.
const REMOVAL_SLICE: Duration = Duration::from_secs(1);

/// Between attempts to remove a directory without descriptors to do so.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// What the handles of a runtime and its tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) home: Home,
    pub(crate) boxes: Boxes,
    pub(crate) controller: ShimController,
    pub(crate) reaper: ShimReaper,
    pub(crate) probes: Probes,
    pub(crate) strays: Arc<Strays>,
    pub(crate) herald: Arc<Herald>,
    metrics: RuntimeMetricsStorage,
    /// Cancelled when nothing more may begin.
    pub(crate) closing: CancellationToken,
    /// Cancelled when every box that has to has ended. The reaper runs under a child of it.
    token: CancellationToken,
    /// What is under way and works on the home.
    pub(crate) operations: TaskTracker,
    driver: Driver,
    ids: Mutex<Generator>,
    lock: Mutex<Option<HomeLock>>,
    /// The process that has opened the runtime.
    owner: u32,
}

impl Core {
    /// Has the home; knows nothing of its boxes yet.
    pub(crate) fn open(options: &RuntimeOptions, driver: Driver) -> Result<Self, RuntimeError> {
        let program = match &options.shim_program {
            Some(path) => ShimProgram::at(path)?,
            None => ShimProgram::this()?,
        };
        let program = program.private_env(options.private_env.clone());
        // Later there may be no thread left for it.
        caretaker().map_err(RuntimeError::Thread)?;
        let (home, lock) = Home::open(&options.home)?;
        let metrics = RuntimeMetricsStorage::default();
        let token = CancellationToken::new();
        let sink = MetricsSink {
            reaped_total: Arc::clone(&metrics.shim_reaped),
            vanished_total: Arc::clone(&metrics.shim_reaper_vanished),
            registered_now: Arc::clone(&metrics.shim_reaper_registered),
        };
        let reaper = ShimReaper::builder()
            .sweep_interval(options.sweep_interval)
            .metrics_sink(sink)
            .shutdown_token(token.child_token())
            .start_on(driver.handle());
        let probes = Probes::new(program.clone());
        Ok(Self {
            home,
            boxes: Boxes::default(),
            controller: ShimController::new(reaper.clone(), program, options.start_timeout),
            strays: Arc::default(),
            reaper,
            probes,
            herald: Arc::new(Herald::new(metrics.clone())),
            metrics,
            closing: CancellationToken::new(),
            token,
            operations: TaskTracker::new(),
            driver,
            ids: Mutex::new(Generator::new()),
            lock: Mutex::new(Some(lock)),
            owner: process::id(),
        })
    }

    /// False in a forked child, which has none of the threads.
    pub(crate) fn is_own(&self) -> bool {
        self.owner == process::id()
    }

    /// In a task that a dropped future does not end.
    pub(crate) async fn operate<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        // Counted first: whoever closes the runtime afterwards waits for it.
        let _counted = self.operations.token();
        if self.closing.is_cancelled() || !self.is_own() {
            return Err(RuntimeError::Closed);
        }
        let work = self.operations.track_future(work);
        joined(self.driver.handle().spawn(work).await)
    }

    /// In a task that goes on when its handle is dropped.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.driver.handle().spawn(work)
    }

    /// Runs work that blocks on the disk apart from the tasks.
    pub(crate) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        Ok(self.driver.disk.run(work).await??)
    }

    /// Ends what the last run of a box has left, together with all others that wait for that.
    pub(crate) async fn end_strays(&self, litter: &Litter) -> io::Result<()> {
        self.strays.end(litter, &self.driver.cleanup).await
    }

    /// Starts to remove a directory that does not belong to a box any more. The task ends when
    /// nothing is left of it, or nothing more can be removed, or the runtime closes: the next runtime
    /// tries again.
    pub(crate) fn remove_remnant(self: &Arc<Self>, path: PathBuf) -> JoinHandle<()> {
        let core = Arc::clone(self);
        self.spawn(async move {
            loop {
                let path = path.clone();
                let part = move || {
                    let end = Instant::now() + REMOVAL_SLICE;
                    remove_tree(&path, || Instant::now() >= end)
                };
                let progress = core.driver.removal.run(part).await;
                match progress.and_then(|progress| Ok(progress?)) {
                    Ok(Progress::Stopped) if !core.closing.is_cancelled() => {}
                    Ok(_) => return,
                    Err(RuntimeError::File(error))
                        if is_resource_exhaustion(&error.source)
                            && !core.closing.is_cancelled() =>
                    {
                        sleep(SHORTAGE_PAUSE).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot remove the directory of a removed box");
                        return;
                    }
                }
            }
        })
    }

    pub(crate) fn new_id(&self) -> String {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        // In order, until a millisecond has seen 2^80 of them.
        ids.generate()
            .unwrap_or_else(|_| Ulid::generate())
            .to_string()
    }

    pub(crate) fn metrics(&self) -> RuntimeMetrics {
        let ReaperStats {
            sweeps_completed,
            last_sweep_at_ms,
            respawns_total,
            worker_alive,
            ..
        } = self.reaper.stats();
        RuntimeMetrics {
            shim_reaper_sweeps: sweeps_completed,
            shim_reaper_last_sweep_at_ms: last_sweep_at_ms,
            shim_reaper_respawns: respawns_total,
            shim_reaper_alive: worker_alive,
            ..self.metrics.snapshot()
        }
    }

    /// Ends the reaper. Whoever still runs goes on.
    pub(crate) fn stop_reaping(&self) -> ShutdownReport {
        self.token.cancel();
        let report = self.reaper.shutdown_sync();
        keep_collecting(&report.still_running);
        report
    }

    /// The last step of every end, when nothing works on the home any more: gives it back.
    pub(crate) fn retire(&self) {
        self.herald.close();
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Nobody can reach the runtime any more, and nobody has shut it down: its attached shims end
    /// by themselves.
    pub(crate) fn abandon(self: &Arc<Self>) {
        self.closing.cancel();
        for left in self.boxes.all() {
            left.release_watchdog();
        }
        self.operations.close();
        if self.operations.is_empty() {
            self.stop_reaping();
            self.retire();
        } else {
            let retiring = self.home.retiring();
            let core = Arc::clone(self);
            self.spawn(async move {
                core.operations.wait().await;
                core.stop_reaping();
                core.retire();
                drop(retiring);
            });
        }
    }
}

pub(crate) fn joined<T>(
    finished: Result<Result<T, RuntimeError>, JoinError>,
) -> Result<T, RuntimeError> {
    match finished {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Err(RuntimeError::Panicked {
                message: message_of(&*panic),
            }),
            Err(_) => Err(RuntimeError::Closed),
        },
    }
}
