use std::sync::{Arc, Mutex, PoisonError};

use shim_reaper::{MetricsSink, ReaperStats, ShimReaper, ShutdownReport};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::{Generator, Ulid};
use vmm_shim::FileError;

use crate::boxes::Boxes;
use crate::driver::Driver;
use crate::event::Herald;
use crate::health::Probes;
use crate::home::{Home, HomeLock};
use crate::process::{Strays, keep_collecting};
use crate::{
    RuntimeError, RuntimeMetrics, RuntimeMetricsStorage, RuntimeOptions, ShimController,
    ShimProgram,
};

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
}

impl Core {
    /// Has the home; knows nothing of its boxes yet.
    pub(crate) fn open(options: &RuntimeOptions, driver: Driver) -> Result<Self, RuntimeError> {
        let program = match &options.shim_program {
            Some(path) => ShimProgram::at(path)?,
            None => ShimProgram::this()?,
        };
        let program = program.private_env(options.private_env.clone());
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
        })
    }

    /// In a task that a dropped future does not end.
    pub(crate) async fn operate<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        // Counted first: whoever closes the runtime afterwards waits for it.
        let _counted = self.operations.token();
        if self.closing.is_cancelled() {
            return Err(RuntimeError::Closed);
        }
        let work = self.operations.track_future(work);
        joined(self.driver.handle().spawn(work).await)
    }

    /// In a task that a dropped future does not end, and that no shutdown waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.driver.handle().spawn(work)
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
            left.let_go();
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

/// Runs what blocks on the disk apart from the tasks.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, RuntimeError> {
    joined(tokio::task::spawn_blocking(|| work().map_err(RuntimeError::from)).await)
}

pub(crate) fn joined<T>(
    finished: Result<Result<T, RuntimeError>, tokio::task::JoinError>,
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

fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "not a text".to_owned())
}
