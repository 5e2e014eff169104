use std::sync::{Arc, Mutex, PoisonError};

use shim_reaper::{MetricsSink, ReaperStats, ShimReaper};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::{Generator, Ulid};
use vmm_shim::FileError;

use crate::boxes::Boxes;
use crate::event::Herald;
use crate::health::Probes;
use crate::home::{Home, HomeLock};
use crate::process::Strays;
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
    pub(crate) token: CancellationToken,
    /// Where operations and supervisors run.
    tokio: Handle,
    pub(crate) tasks: TaskTracker,
    ids: Mutex<Generator>,
    lock: Mutex<Option<HomeLock>>,
}

impl Core {
    /// Has the home; knows nothing of its boxes yet.
    pub(crate) fn open(options: &RuntimeOptions, tokio: Handle) -> Result<Self, RuntimeError> {
        let program = match &options.shim_program {
            Some(path) => ShimProgram::at(path)?,
            None => ShimProgram::this()?,
        };
        let (home, lock) = Home::open(&options.home)?;
        let metrics = RuntimeMetricsStorage::default();
        let token = CancellationToken::new();
        let sink = MetricsSink {
            reaped_total: Arc::clone(&metrics.shim_reaped),
            vanished_total: Arc::clone(&metrics.shim_reaper_vanished),
            registered_now: Arc::clone(&metrics.shim_reaper_registered),
        };
        // On a thread of its own: it goes on when the caller's runtime is blocked, or gone.
        let reaper = ShimReaper::builder()
            .sweep_interval(options.sweep_interval)
            .metrics_sink(sink)
            .shutdown_token(token.child_token())
            .start_dedicated()
            .map_err(RuntimeError::Reaper)?;
        Ok(Self {
            home,
            boxes: Boxes::default(),
            controller: ShimController::new(reaper.clone(), program, options.start_timeout),
            strays: Arc::new(Strays::new(reaper.clone())),
            reaper,
            probes: Probes::default(),
            herald: Arc::new(Herald::new(metrics.clone())),
            metrics,
            closing: CancellationToken::new(),
            token,
            tokio,
            tasks: TaskTracker::new(),
            ids: Mutex::new(Generator::new()),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// In a task that a dropped future does not end.
    pub(crate) async fn operate<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        if self.closing.is_cancelled() {
            return Err(RuntimeError::Closed);
        }
        joined(self.tasks.spawn_on(work, &self.tokio).await)
    }

    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.tokio);
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

    /// Gives the home back.
    pub(crate) fn unlock(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Nobody can reach the runtime any more, and nobody has shut it down: its attached shims end
    /// by themselves, and the reaper collects them.
    pub(crate) fn abandon(&self) {
        self.closing.cancel();
        for left in self.boxes.all() {
            left.let_go();
        }
        self.herald.close();
        self.unlock();
    }
}

/// Runs what blocks on the disk apart from the tasks.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, RuntimeError> {
    joined(tokio::task::spawn_blocking(|| work().map_err(RuntimeError::from)).await)
}

fn joined<T>(
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
