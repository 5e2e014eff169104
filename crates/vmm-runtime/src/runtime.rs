use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

use crate::boxes::MicroBox;
use crate::core::Core;
use crate::driver::Driver;
use crate::home::Home;
use crate::lifecycle::{self, RuntimeShutdown};
use crate::shutdown::Shutdown;
use crate::{BoxInfo, BoxSpec, Events, RuntimeError, RuntimeMetrics, RuntimeOptions};

/// Runs boxes, each inside a shim process of its own.
///
/// Clones refer to the same runtime. Everything may be called concurrently, also for one box: of
/// two starts one starts the shim and both return when it runs, a stop or a removal by force gives
/// up a start that is under way, and what else concerns one box goes one after the other. A box is
/// named by its id or its name.
///
/// # Its end
///
/// [`shutdown`](Self::shutdown) stops the attached boxes and leaves the detached ones. A runtime
/// that is dropped without it, or whose process dies, lets go of its shims: attached ones end by
/// themselves, for their watchdog hangs up; detached ones are found again when the home is next
/// opened.
///
/// A child that the process forks without executing another program does not have the runtime:
/// operations fail there with [`RuntimeError::Closed`], and a shutdown and a drop do nothing.
///
/// # Cancel safety
///
/// Every operation goes on without its future, once that has been polled.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use vmm_runtime::{BoxSpec, RuntimeOptions, VmmRuntime};
///
/// let runtime = VmmRuntime::open(RuntimeOptions::new("/var/lib/boxes")).await?;
/// runtime.create(BoxSpec::new(["sleep", "60"]).name("nap")).await?;
/// let running = runtime.start("nap").await?;
/// println!("{} runs in the shim {:?}", running.id, running.pid);
/// runtime.remove("nap", true).await?;
/// runtime.shutdown(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct VmmRuntime {
    front: Arc<Front>,
}

/// Shared by the clones, but not by the tasks.
#[derive(Debug)]
struct Front {
    core: Arc<Core>,
    shutdown: Arc<Shutdown>,
}

impl Drop for Front {
    fn drop(&mut self) {
        if !self.core.is_own() {
            // Of a forked child: the runtime, its shims and its lock are the parent's.
            std::mem::forget((Arc::clone(&self.core), Arc::clone(&self.shutdown)));
            return;
        }
        if self.shutdown.has_begun() {
            self.shutdown.keep(self.core.home.retiring());
        } else {
            self.core.abandon();
        }
    }
}

impl fmt::Debug for VmmRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = self.core();
        f.debug_struct("VmmRuntime")
            .field("home", &core.home)
            .field("boxes", &core.boxes.all().len())
            .finish_non_exhaustive()
    }
}

/// How long a look at a box waits for its end to be put on disk.
const SHOWN_WITHIN: Duration = Duration::from_millis(100);

impl VmmRuntime {
    /// Opens a home, makes it if need be, and takes in the boxes that it holds. If the process that
    /// has the home has died, waits up to 2 s for the children that it was starting.
    ///
    /// Everything runs on a thread of its own, whatever the caller's tokio runtime does: it may be
    /// blocked, or gone, and deaths are still known at once.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Locked`] while another runtime has the home;
    /// [`RuntimeError::HomeOfAnother`] and [`RuntimeError::OpenHome`] if other users could change
    /// it; [`RuntimeError::Thread`] if its threads cannot be started; [`RuntimeError::ShimProgram`]
    /// if there is nothing to run shims with, [`RuntimeError::File`] if the home cannot be used.
    /// A damaged box is no error: it is listed as failed, with the reason.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the home back; shims that were found go on as before.
    pub async fn open(options: RuntimeOptions) -> Result<Self, RuntimeError> {
        Home::until_left(&options.home).await;
        let driver = Driver::start().map_err(RuntimeError::Thread)?;
        let disk = driver.disk.clone();
        let token = options.shutdown_token.clone();
        let limit = options.shutdown_timeout;
        let core = Arc::new(disk.run(move || Core::open(&options, driver)).await??);
        let runtime = Self {
            front: Arc::new(Front {
                core: Arc::clone(&core),
                shutdown: Arc::default(),
            }),
        };
        core.operate(lifecycle::recover(Arc::clone(&core))).await?;
        if let Some(token) = token {
            let shutdown = Arc::clone(&runtime.front.shutdown);
            let tied = Arc::clone(&core);
            core.spawn(async move {
                tokio::select! {
                    () = token.cancelled() => shutdown.begin(&tied, limit),
                    () = tied.closing.cancelled() => {}
                }
            });
        }
        Ok(runtime)
    }

    fn core(&self) -> &Arc<Core> {
        &self.front.core
    }

    /// Makes a box, without starting it.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NameTaken`], [`RuntimeError::InvalidName`], [`RuntimeError::Closed`], and
    /// [`RuntimeError::File`] if the disk refuses; nothing is left behind.
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn create(&self, spec: BoxSpec) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        core.operate(lifecycle::create(Arc::clone(core), spec))
            .await
    }

    /// Starts a box, and returns when its payload is ready; at once if it runs already.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Start`]: whatever failed, the shim is gone and collected.
    /// [`RuntimeError::NotFound`], [`RuntimeError::Closed`]; [`RuntimeError::Damaged`] if its
    /// `box.json` cannot be read; [`RuntimeError::CleanupFailed`] if strays of its last run are left, and
    /// [`RuntimeError::Stuck`] if the shim of that survives SIGKILL.
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn start(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        let started = core.boxes.find(id_or_name)?;
        let stops = started.stops();
        core.operate(lifecycle::start(Arc::clone(core), started, stops))
            .await
    }

    /// Stops a box: its payload is asked to (SIGTERM), and killed with all that descends from it
    /// when its [grace](BoxSpec::stop_grace) has passed. Gives up a start that is under way. A box
    /// that does not run is as good as stopped.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Stuck`] if the shim survives SIGKILL, [`RuntimeError::CleanupFailed`] if it has
    /// ended and strays are left; [`RuntimeError::NotFound`], [`RuntimeError::Closed`].
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn stop(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        let stopped = core.boxes.find(id_or_name)?;
        let grace = stopped.grace();
        core.operate(lifecycle::stop(Arc::clone(core), stopped, grace))
            .await
    }

    /// [`stop`](Self::stop) with another grace than the box's own.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop).
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn stop_within(
        &self,
        id_or_name: &str,
        grace: Duration,
    ) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        let stopped = core.boxes.find(id_or_name)?;
        core.operate(lifecycle::stop(Arc::clone(core), stopped, grace))
            .await
    }

    /// Removes a box. With `force` one that runs is killed first, at once. Returns when its shim
    /// is gone from `/proc` and its files from the disk. The zombie of a shim that was found again,
    /// and is another process's child, is waited for, but for two seconds only. A directory that the
    /// payload has filled so that it takes longer than 10 s to remove goes in the background.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Running`] without `force`; [`RuntimeError::Stuck`] if the shim survives
    /// SIGKILL; [`RuntimeError::CleanupFailed`] if strays are left, [`RuntimeError::File`] if its directory
    /// cannot be removed; [`RuntimeError::NotFound`], [`RuntimeError::Closed`].
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn remove(&self, id_or_name: &str, force: bool) -> Result<(), RuntimeError> {
        let core = self.core();
        let removed = core.boxes.find(id_or_name)?;
        core.operate(lifecycle::remove(Arc::clone(core), removed, force))
            .await
    }

    /// What there is to know about a box now. An end is shown once it is on disk, as it is reported
    /// by [`wait`](Self::wait) and [`events`](Self::events): no crash of this process takes it back.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`].
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn info(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let found = self.core().boxes.find(id_or_name)?;
        self.settle_soon([&found]).await;
        Ok(found.info())
    }

    /// Lets ends that are just being put on disk be reported. Bounded: a disk may hang.
    async fn settle_soon(&self, boxes: impl IntoIterator<Item = &Arc<MicroBox>>) {
        let unsettled: Vec<_> = boxes
            .into_iter()
            .filter(|found| found.is_unsettled())
            .cloned()
            .collect();
        // The threads of the runtime do not exist in a forked child.
        if unsettled.is_empty() || !self.core().is_own() {
            return;
        }
        // On the runtime's own thread: the caller may have no tokio runtime.
        let core = Arc::clone(self.core());
        let settled = self.core().spawn(async move {
            let settled = join_all(
                unsettled
                    .iter()
                    .map(|ended| lifecycle::settle(&core, ended)),
            );
            let _ = timeout(SHOWN_WITHIN, settled).await;
        });
        let _ = settled.await;
    }

    /// All boxes, in the order of their creation.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn list(&self) -> Vec<BoxInfo> {
        let boxes = self.core().boxes.all();
        self.settle_soon(&boxes).await;
        boxes.iter().map(|listed| listed.info()).collect()
    }

    /// A page of [`list`](Self::list), at the cost of that page: of the boxes created after the one
    /// with this id, which may be gone by now, at most so many. An empty id is before all.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn list_after(&self, id: &str, limit: usize) -> Vec<BoxInfo> {
        let boxes = self.core().boxes.after(id, limit);
        self.settle_soon(&boxes).await;
        boxes.iter().map(|listed| listed.info()).collect()
    }

    /// Waits until a box does not run, at once if it does not now, and tells how it ended.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`], and [`RuntimeError::Closed`] if the runtime is shut down first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn wait(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let awaited = self.core().boxes.find(id_or_name)?;
        if let Some(shim) = awaited.shim() {
            shim.wait().await.map_err(|_| RuntimeError::Closed)?;
        }
        let (core, ended) = (Arc::clone(self.core()), Arc::clone(&awaited));
        let settled = async move { lifecycle::settled(&core, &ended).await };
        let _ = self.core().spawn(settled).await;
        Ok(awaited.info())
    }

    /// What the runtime has done and does.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn metrics(&self) -> RuntimeMetrics {
        self.core().metrics()
    }

    /// Every change of every box from now on.
    pub fn events(&self) -> Events {
        self.core().herald.subscribe()
    }

    /// Shuts down: nothing new is begun, starts that are under way are given up, attached boxes
    /// are stopped, and killed when their grace or `timeout` has passed, whichever is earlier.
    /// Detached boxes go on. Then the reaper ends, and the home is given back. Every caller gets
    /// the same report, and the first one's `timeout` counts. It takes 10 s longer than that at the
    /// most, for what survives SIGKILL, and half a minute more only where a disk hangs.
    ///
    /// # Cancel safety
    ///
    /// The shutdown goes on without the future, once that has been polled.
    pub async fn shutdown(&self, timeout: Duration) -> RuntimeShutdown {
        if !self.core().is_own() {
            return RuntimeShutdown::default();
        }
        let shutdown = &self.front.shutdown;
        shutdown.begin(self.core(), timeout);
        shutdown.report().await
    }

    /// [`shutdown`](Self::shutdown) for code that cannot await: a `Drop`, an `atexit` handler, in
    /// or out of a tokio runtime. Depends on no task or thread of the caller's to make progress.
    pub fn shutdown_sync(&self, timeout: Duration) -> RuntimeShutdown {
        if !self.core().is_own() {
            return RuntimeShutdown::default();
        }
        let shutdown = &self.front.shutdown;
        shutdown.begin(self.core(), timeout);
        shutdown.report_blocking()
    }
}
