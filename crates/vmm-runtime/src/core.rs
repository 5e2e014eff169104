use std::io;
use std::path::{PathBuf, absolute};
use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shim_reaper::pidfd_spawn::reserve_descriptors;
use shim_reaper::{MetricsSink, ReaperStats, ShimReaper, ShutdownReport};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::{Generator, Ulid};
use vmm_protocol::{
    FileError, HostPolicy, RemovalProgress, panic_message, remove_tree, with_causes,
};

use crate::boxes::{BoxUids, Boxes, MicroBox};
use crate::driver::Driver;
use crate::event::EventBus;
use crate::health::ProbeRunner;
use crate::home::{Home, HomeLock};
use crate::pause_watcher::PauseWatcher;
use crate::process::{
    CleanupTarget, OrphanCleaner, ZombieCounter, keep_reaping, process_wide_reaper,
};
use crate::restart::DueBoxes;
use crate::shim::WarmShims;
use crate::{
    BoxId, PayloadCheck, PayloadCleanup, RuntimeError, RuntimeMetrics, RuntimeMetricsStorage,
    RuntimeOptions, ShimController, ShimProgram,
};

/// How long the removal of one directory may run before the next queued removal gets its turn.
const REMOVAL_SLICE: Duration = Duration::from_millis(100);

/// The backoff between attempts to remove a directory.
const MIN_REMOVAL_PAUSE: Duration = Duration::from_millis(100);
const MAX_REMOVAL_PAUSE: Duration = Duration::from_secs(600);

/// The state that the handles of a runtime and its tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) home: Home,
    /// [`RuntimeOptions::cache_dir`].
    pub(crate) cache_dir: PathBuf,
    /// [`RuntimeOptions::disk_reserve`].
    disk_reserve: u64,
    /// [`RuntimeOptions::payload_check`].
    pub(crate) payload_check: Option<PayloadCheck>,
    /// [`RuntimeOptions::payload_cleanup`].
    payload_cleanup: Option<PayloadCleanup>,
    /// [`RuntimeOptions::policy`].
    pub(crate) policy: HostPolicy,
    pub(crate) boxes: Boxes,
    pub(crate) uids: BoxUids,
    pub(crate) controller: ShimController,
    pub(crate) warm_shims: Arc<WarmShims>,
    pub(crate) reaper: ShimReaper,
    pub(crate) probes: ProbeRunner,
    /// `None` if the user has no inotify instance left.
    pub(crate) pauses: Option<PauseWatcher>,
    pub(crate) orphans: Arc<OrphanCleaner>,
    pub(crate) zombies: ZombieCounter,
    pub(crate) events: Arc<EventBus>,
    /// What the task [`follow_up`](crate::restart::follow_up) has to do.
    pub(crate) due: Arc<DueBoxes>,
    metrics: RuntimeMetricsStorage,
    /// Cancelled when no new operation may begin.
    pub(crate) closing: CancellationToken,
    /// Cancelled when every attached box has ended. The reaper's token is its child.
    reaper_token: CancellationToken,
    /// The operations in progress, all of which may change the home.
    pub(crate) operations: TaskTracker,
    /// The removals of directories that no longer belong to a box.
    pub(crate) removals: TaskTracker,
    driver: Driver,
    ids: Mutex<Generator>,
    lock: Mutex<Option<HomeLock>>,
    /// The pid of the process that opened the runtime.
    owner: u32,
}

impl Core {
    /// Opens the home and starts the reaper. Does not read any box yet.
    pub(crate) fn open(options: &RuntimeOptions, driver: Driver) -> Result<Self, RuntimeError> {
        let program = match &options.shim_program {
            Some(program) => program.clone(),
            None => ShimProgram::this()?,
        };
        let program = program.private_env(options.private_env.clone());
        // Before the descriptors of the boxes take the low numbers.
        if let Err(error) = reserve_descriptors() {
            tracing::warn!(%error, "cannot reserve low descriptors; a start may take longer the more boxes there are");
        }
        // Later no thread may be left for it.
        process_wide_reaper().map_err(RuntimeError::Thread)?;
        let uids = BoxUids::new(options)?;
        let (home, lock) = Home::open(&options.home, options.disk_reserve)?;
        let cache_dir = match &options.cache_dir {
            Some(dir) => absolute(dir).map_err(|error| FileError::new("find", dir, error))?,
            None => home.cache(),
        };
        let metrics = RuntimeMetricsStorage::default();
        let reaper_token = CancellationToken::new();
        let sink = MetricsSink {
            reaped_total: Arc::clone(&metrics.shim_reaped),
            vanished_total: Arc::clone(&metrics.shim_reaper_vanished),
            registered_now: Arc::clone(&metrics.shim_reaper_registered),
        };
        let reaper = ShimReaper::builder()
            .sweep_interval(options.sweep_interval)
            .metrics_sink(sink)
            .shutdown_token(reaper_token.child_token())
            .start_on(driver.handle());
        let probes = ProbeRunner::new(program.clone());
        let pauses = PauseWatcher::start(&driver)
            .inspect_err(|error| {
                tracing::warn!(%error, "boxes that are paused by other programs are shown as running");
            })
            .ok();
        let warm_shims = Arc::new(WarmShims::new(
            reaper.clone(),
            program.clone(),
            home.boxes(),
            options.warm_shims,
            Arc::clone(&metrics.warm_shim_failures_total),
        ));
        let controller = ShimController::new(reaper.clone(), program, options.start_timeout)
            .in_runtime(Arc::clone(&warm_shims), driver.disk.clone());
        Ok(Self {
            home,
            cache_dir,
            disk_reserve: options.disk_reserve,
            payload_check: options.payload_check.clone(),
            payload_cleanup: options.payload_cleanup.clone(),
            policy: options.policy.clone(),
            boxes: Boxes::default(),
            uids,
            controller,
            warm_shims,
            orphans: Arc::new(OrphanCleaner::new(reaper.clone())),
            zombies: ZombieCounter::new(),
            reaper,
            probes,
            pauses,
            events: Arc::new(EventBus::new(metrics.clone())),
            due: Arc::default(),
            metrics,
            closing: CancellationToken::new(),
            reaper_token,
            operations: TaskTracker::new(),
            removals: TaskTracker::new(),
            driver,
            ids: Mutex::new(Generator::new()),
            lock: Mutex::new(Some(lock)),
            owner: process::id(),
        })
    }

    /// Returns whether this process opened the runtime. A forked child did not: it has none of the
    /// threads.
    pub(crate) fn is_owner(&self) -> bool {
        self.owner == process::id()
    }

    /// Runs `work` in a task that continues if the returned future is dropped.
    pub(crate) async fn run_detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        // Registered before the check: a concurrent shutdown either waits for it or cancels it
        // here.
        let _operation = self.operations.token();
        if self.closing.is_cancelled() || !self.is_owner() {
            return Err(RuntimeError::Closed);
        }
        let work = self.operations.track_future(work);
        flatten_join(self.driver.handle().spawn(work).await)
    }

    /// Spawns a task on the runtime's own thread. Dropping the handle does not stop the task.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.driver.handle().spawn(work)
    }

    /// Runs `work`, which blocks on the disk, on a disk thread.
    pub(crate) async fn run_on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        Ok(self.driver.disk.run(work).await??)
    }

    /// Fails if less than the reserve is free on the disk.
    pub(crate) async fn check_free_space(&self) -> Result<(), RuntimeError> {
        let (home, reserve) = (self.home.clone(), self.disk_reserve);
        if reserve == 0 {
            return Ok(());
        }
        self.driver
            .disk
            .run(move || home.check_free_space(reserve))
            .await?
    }

    /// Runs `work`, which reads `/proc` or output, on a disk thread.
    pub(crate) async fn inspect<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RuntimeError> {
        // A forked child has none of the threads.
        if self.is_owner() {
            self.driver.disk.run(work).await
        } else {
            Err(RuntimeError::Closed)
        }
    }

    /// Kills the orphans of `target` and removes its control group. Concurrent calls share one
    /// search.
    pub(crate) async fn clean_orphans(&self, target: &CleanupTarget) -> io::Result<()> {
        self.orphans.clean(target, &self.driver.cleanup).await
    }

    /// Removes what a run has left beside processes: with the engine what it had made, and the files
    /// of the shim. No process of the run is left.
    pub(crate) async fn clean_files(&self, bx: &MicroBox) -> io::Result<()> {
        let cleanup = self.payload_cleanup.clone();
        let (payload, dir) = (bx.payload(), bx.dir().clone());
        let work = move || {
            // A payload can prevent it, and the next start reports that.
            let _ = dir.delete_transient_files();
            cleanup.map_or(Ok(()), |cleanup| cleanup.run(&payload, dir.path()))
        };
        // One after the other: the work of a call that was cancelled cannot overlap with the next run.
        let done = self.driver.cleanup.run(work).await;
        done.map_err(io::Error::other)?
    }

    /// Spawns the removal of a directory that no longer belongs to a box. The task retries with
    /// backoff until the directory is removed. It ends early when the runtime closes, after it has
    /// removed what takes less than [`REMOVAL_SLICE`]; the next runtime removes the rest.
    pub(crate) fn remove_remnant(self: &Arc<Self>, path: PathBuf) -> JoinHandle<()> {
        let core = Arc::clone(self);
        self.spawn(self.removals.track_future(async move {
            let mut pause = MIN_REMOVAL_PAUSE;
            loop {
                let path = path.clone();
                let part = move || {
                    let end = Instant::now() + REMOVAL_SLICE;
                    remove_tree(&path, || Instant::now() >= end)
                };
                let progress = core.driver.removal.run(part).await;
                match progress.and_then(|progress| Ok(progress?)) {
                    Ok(RemovalProgress::Removed) | Err(RuntimeError::Closed) => return,
                    Ok(RemovalProgress::Stopped) if core.closing.is_cancelled() => return,
                    Ok(RemovalProgress::Stopped) => {}
                    Err(error) => {
                        tracing::warn!(error = %with_causes(&error), "cannot remove the directory of a removed box; retrying");
                        tokio::select! {
                            biased;
                            () = core.closing.cancelled() => return,
                            () = sleep(pause) => {}
                        }
                        pause = (pause * 2).min(MAX_REMOVAL_PAUSE);
                    }
                }
            }
        }))
    }

    /// Returns a new box id. Ids sort by creation.
    pub(crate) fn new_id(&self) -> BoxId {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        // The generator keeps ids in order; it fails only after 2^80 ids in one millisecond.
        BoxId::new(ids.generate().unwrap_or_else(|_| Ulid::generate()))
    }

    /// Returns the counters of the runtime and of its reaper.
    pub(crate) fn metrics(&self) -> RuntimeMetrics {
        let (warm_shims, stats) = self.warm_shims.count_with(|| self.reaper.stats());
        let ReaperStats {
            registered,
            owner_reaped_total,
            observed_total,
            foreign_waits_total,
            unknown_total,
            sweeps_completed,
            last_sweep_at,
            respawns_total,
            worker_alive,
            ..
        } = stats;
        RuntimeMetrics {
            warm_shims,
            shim_reaper_registered: registered.saturating_sub(warm_shims),
            shim_zombies: self.zombies.count(registered),
            shim_reaper_owner_reaped: owner_reaped_total,
            shim_reaper_observed: observed_total,
            shim_reaper_foreign_waits: foreign_waits_total,
            shim_reaper_unknown: unknown_total,
            shim_reaper_sweeps: sweeps_completed,
            shim_reaper_last_sweep_at_ms: last_sweep_at.and_then(unix_millis),
            shim_reaper_respawns: respawns_total,
            shim_reaper_alive: worker_alive,
            ..self.metrics.snapshot()
        }
    }

    /// Stops the reaper. Processes that still run are not affected.
    pub(crate) fn stop_reaper(&self) -> ShutdownReport {
        self.reaper_token.cancel();
        let report = self.reaper.shutdown_sync();
        keep_reaping(&report.still_running);
        report
    }

    /// Ends the event streams and unlocks the home. The last step of every shutdown, after all
    /// operations have ended.
    pub(crate) fn release_home(&self) {
        self.events.close();
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Closes a runtime whose handles were all dropped without a shutdown. The watchdogs of
    /// attached shims hang up, and those shims end by themselves.
    pub(crate) fn abandon(self: &Arc<Self>) {
        self.closing.cancel();
        for bx in self.boxes.all() {
            bx.release_watchdog();
        }
        self.warm_shims.abandon();
        self.operations.close();
        if self.operations.is_empty() {
            self.stop_reaper();
            self.release_home();
        } else {
            let closing_home = self.home.mark_closing();
            let core = Arc::clone(self);
            self.spawn(async move {
                core.operations.wait().await;
                core.stop_reaper();
                core.release_home();
                drop(closing_home);
            });
        }
    }
}

/// Merges the result of a task with its failure to complete.
pub(crate) fn flatten_join<T>(
    finished: Result<Result<T, RuntimeError>, JoinError>,
) -> Result<T, RuntimeError> {
    match finished {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Err(RuntimeError::Panicked {
                message: panic_message(&*panic).to_owned(),
            }),
            Err(_) => Err(RuntimeError::Closed),
        },
    }
}

fn unix_millis(time: SystemTime) -> Option<i64> {
    let since_epoch = time.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since_epoch.as_millis()).ok()
}
