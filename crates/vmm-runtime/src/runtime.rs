use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::boxes::StartRequest;
use crate::core::Core;
use crate::driver::Driver;
use crate::home::Home;
use crate::lifecycle::{self, RuntimeShutdown};
use crate::restart;
use crate::shutdown_task::ShutdownTask;
use crate::{BoxInfo, BoxSpec, Removal, RuntimeError, RuntimeOptions};

/// A VMM runtime: creates, starts, stops and removes boxes, each inside its own shim.
///
/// Clones share one runtime. All methods may be called concurrently, also for the same box:
/// concurrent starts of one box share one shim and all return when it runs, a stop or a removal
/// with force cancels a start in progress, and all other operations on one box run one after the
/// other. A box is identified by its id, its
/// name, or a prefix that only its id has.
///
/// # Shutdown
///
/// [`shutdown`](Self::shutdown) stops the attached boxes and leaves the detached ones running. If a
/// runtime is dropped without a shutdown, or its process dies, the watchdogs of its shims hang up:
/// attached shims then stop their payloads and exit. Detached shims keep running, and the next
/// runtime that opens the home re-attaches to them. The [process-wide
/// reaper](crate#process-wide-state) reaps those that are children of this process. An
/// [`open`](Self::open) in the same process waits until a dropped runtime has released the home.
///
/// A forked child that does not execute another program cannot use the runtime: operations fail
/// there with [`RuntimeError::Closed`], and a shutdown or a drop has no effect.
///
/// # Cancel safety
///
/// Once polled, every operation runs to completion even if its future is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use vmm_runtime::{BoxSpec, Removal, RuntimeOptions, VmmRuntime};
///
/// let runtime = VmmRuntime::open(RuntimeOptions::new("/var/lib/boxes")).await?;
/// runtime.create(BoxSpec::new(["sleep", "60"]).name("nap")).await?;
/// let running = runtime.start("nap").await?;
/// println!("box {} runs in shim {:?}", running.id, running.pid);
/// runtime.remove("nap", Removal::Force).await?;
/// runtime.shutdown(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct VmmRuntime {
    inner: Arc<ShutdownOnDrop>,
}

/// The part that clones share and tasks do not, so that its drop shows that the last clone is gone.
#[derive(Debug)]
struct ShutdownOnDrop {
    core: Arc<Core>,
    shutdown: Arc<ShutdownTask>,
}

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        if !self.core.is_owner() {
            // In a forked child: the runtime, its shims and its lock belong to the parent.
            std::mem::forget((Arc::clone(&self.core), Arc::clone(&self.shutdown)));
            return;
        }
        if self.shutdown.has_begun() {
            self.shutdown.hold_home(self.core.home.mark_closing());
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

impl VmmRuntime {
    /// Opens a home, creates it if it does not exist, and recovers the boxes in it. If the process
    /// that held the home has died, waits up to 2 s for the children that it was spawning.
    ///
    /// The runtime works on its own threads. It detects exits even if the caller's tokio runtime is
    /// blocked or gone.
    ///
    /// The first call in a process also starts the [process-wide
    /// reaper](crate#process-wide-state), which outlives the runtime. A call for the home of a
    /// runtime that was dropped in this process waits until that runtime has released it.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Locked`] while another runtime has the home; [`RuntimeError::HomeOfAnother`]
    /// and [`RuntimeError::OpenHome`] if another user could change it; [`RuntimeError::Thread`] if
    /// a thread cannot be started; [`RuntimeError::ShimProgram`] if the current program cannot be
    /// its own shim; [`RuntimeError::File`] if the home cannot be read or written. A damaged box is not an
    /// error: it is listed as failed, with the reason.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future releases the home. Shims that it found are not affected.
    pub async fn open(options: RuntimeOptions) -> Result<Self, RuntimeError> {
        Home::wait_released(&options.home).await;
        let driver = Driver::start().map_err(RuntimeError::Thread)?;
        let disk = driver.disk.clone();
        let token = options.shutdown_token.clone();
        let limit = options.shutdown_timeout;
        let core = Arc::new(disk.run(move || Core::open(&options, driver)).await??);
        let runtime = Self {
            inner: Arc::new(ShutdownOnDrop {
                core: Arc::clone(&core),
                shutdown: Arc::default(),
            }),
        };
        core.run_detached(lifecycle::recover(Arc::clone(&core)))
            .await?;
        core.spawn(restart::follow_up(Arc::clone(&core)));
        if let Some(token) = token {
            let shutdown = Arc::clone(&runtime.inner.shutdown);
            let task = {
                let core = Arc::clone(&core);
                async move {
                    tokio::select! {
                        () = token.cancelled() => shutdown.begin(&core, limit),
                        () = core.closing.cancelled() => {}
                    }
                }
            };
            core.spawn(task);
        }
        Ok(runtime)
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    /// Creates a box without starting it.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NameTaken`], [`RuntimeError::InvalidName`], [`RuntimeError::DiskFull`], [`RuntimeError::OutOfInodes`],
    /// [`RuntimeError::RestartOfRemoved`], [`RuntimeError::Closed`], and
    /// [`RuntimeError::File`] if the disk refuses. A failed creation leaves no files.
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn create(&self, spec: BoxSpec) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        core.run_detached(lifecycle::create(Arc::clone(core), spec))
            .await
    }

    /// Starts a box and waits until its payload is ready. Returns at once if it is already running.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Start`] if the start failed; its shim has then ended and been reaped.
    /// [`RuntimeError::NotFound`], [`RuntimeError::Closed`]; [`RuntimeError::Damaged`] if the
    /// `box.json` cannot be read; [`RuntimeError::CleanupFailed`] if orphans of the previous run
    /// are left; [`RuntimeError::Stuck`] if the shim of the previous run survives SIGKILL.
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn start(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        let bx = core.boxes.find(id_or_name)?;
        let request = StartRequest::by_user(bx.stop_epoch());
        core.run_detached(lifecycle::start(Arc::clone(core), bx, request))
            .await
    }

    /// Stops a box: sends SIGTERM to the payload, and after the [grace period](BoxSpec::stop_grace)
    /// kills the payload and all its descendants. Cancels a start in progress. Succeeds at once if
    /// the box is not running.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Stuck`] if the shim survives SIGKILL; [`RuntimeError::CleanupFailed`] if the
    /// shim has ended but orphans are left; [`RuntimeError::File`] if the box has a
    /// [restart policy](BoxSpec::restart) and the stop cannot be saved: the box has ended, but the
    /// next runtime may restart it, until a retry in the background has saved the stop;
    /// [`RuntimeError::NotFound`], [`RuntimeError::Closed`].
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn stop(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        let bx = core.boxes.find(id_or_name)?;
        let grace = bx.stop_grace();
        core.run_detached(lifecycle::stop(Arc::clone(core), bx, grace))
            .await
    }

    /// Stops a box as [`stop`](Self::stop) does, with a grace period of `grace` instead of the
    /// box's own.
    ///
    /// # Errors
    ///
    /// See [`stop`](Self::stop).
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
        let bx = core.boxes.find(id_or_name)?;
        core.run_detached(lifecycle::stop(Arc::clone(core), bx, grace))
            .await
    }

    /// Pauses a box: freezes its payload with all processes, until it is [resumed](Self::resume).
    /// Waits for a start in progress. Returns at once if the box is paused. A paused box is not probed,
    /// runs no further commands, and can be stopped and removed.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`], [`RuntimeError::Ambiguous`], [`RuntimeError::NotRunning`],
    /// [`RuntimeError::Closed`]; [`RuntimeError::Exec`] with
    /// [`ExecError::Refused`](crate::ExecError::Refused) of the kind `Unsupported` if the host cannot
    /// freeze the payload, or `Failed` with the cause, such as a process that does not freeze within 2 s.
    /// The engine `process` needs control groups of version 2 (Linux 5.2), also beside those of version 1;
    /// the engine `qemu` needs neither.
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn pause(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        let bx = core.boxes.find(id_or_name)?;
        core.run_detached(lifecycle::pause(Arc::clone(core), bx))
            .await
    }

    /// Resumes a box that is [paused](Self::pause). Returns at once if it is not.
    ///
    /// # Errors
    ///
    /// Those of [`pause`](Self::pause).
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn resume(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let core = self.core();
        let bx = core.boxes.find(id_or_name)?;
        core.run_detached(lifecycle::resume(Arc::clone(core), bx))
            .await
    }

    /// Removes a box. With [`Removal::Force`], first kills a running box. Returns when no process of
    /// the box is running, and the removal is on disk: no later runtime finds the box, and its name is
    /// free. The runtime deletes the files afterwards, and the next runtime those that a shutdown
    /// leaves.
    ///
    /// A shim that this process spawned is also reaped by then. One of an earlier runtime can be a
    /// zombie until its parent reaps it.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Running`] without force; [`RuntimeError::Stuck`] if the shim survives
    /// SIGKILL; [`RuntimeError::CleanupFailed`] if orphans are left; [`RuntimeError::File`] if the
    /// directory cannot be removed; [`RuntimeError::NotFound`], [`RuntimeError::Closed`].
    ///
    /// # Cancel safety
    ///
    /// See [`VmmRuntime`].
    pub async fn remove(
        &self,
        id_or_name: &str,
        removal: impl Into<Removal>,
    ) -> Result<(), RuntimeError> {
        let core = self.core();
        let bx = core.boxes.find(id_or_name)?;
        let removed = lifecycle::remove(Arc::clone(core), bx, removal.into());
        core.run_detached(removed).await
    }

    /// Waits until a box has ended and returns its state, with how it ended. Returns at once if it
    /// is neither starting nor running.
    ///
    /// When it returns, no process of the run is running any more: not the shim, not the payload,
    /// and no descendant that the [cleanup](crate#what-is-trusted) can find. The same is true when
    /// [`events`](Self::events) reports the end.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::CleanupFailed`] if processes of the run survive SIGKILL,
    /// [`RuntimeError::NotFound`], and [`RuntimeError::Closed`] if the runtime is shut down first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn wait(&self, id_or_name: &str) -> Result<BoxInfo, RuntimeError> {
        let bx = self.core().boxes.find(id_or_name)?;
        bx.start_finished().await;
        if let Some(shim) = bx.shim() {
            shim.wait().await.map_err(|_| RuntimeError::Closed)?;
        }
        let core = self.core();
        let finished = lifecycle::finish_run(Arc::clone(core), Arc::clone(&bx));
        match core.run_detached(finished).await {
            // A shutdown reports the end of every box.
            Ok(()) | Err(RuntimeError::Closed) => bx.end_reported().await,
            Err(error) => return Err(error),
        }
        Ok(bx.info())
    }

    /// Shuts the runtime down. New operations fail, and starts in progress are cancelled. Attached
    /// boxes are stopped, and killed after their grace period or `timeout`, whichever ends first.
    /// Detached boxes keep running. Then the reaper stops and the home is unlocked. Concurrent
    /// callers get the same report; the `timeout` of the first call applies. The shutdown takes at
    /// most `timeout` plus 20 s for processes that survive SIGKILL, and 60 s more only if a disk
    /// hangs.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the shutdown completes even if the future is dropped.
    pub async fn shutdown(&self, timeout: Duration) -> RuntimeShutdown {
        if !self.core().is_owner() {
            return RuntimeShutdown::default();
        }
        let shutdown = &self.inner.shutdown;
        shutdown.begin(self.core(), timeout);
        shutdown.report().await
    }

    /// Shuts the runtime down as [`shutdown`](Self::shutdown) does, and blocks the calling thread
    /// until then. For code that cannot await, such as a `Drop` or an `atexit` handler, inside or
    /// outside a tokio runtime. Does not depend on any task or thread of the caller.
    pub fn shutdown_sync(&self, timeout: Duration) -> RuntimeShutdown {
        if !self.core().is_owner() {
            return RuntimeShutdown::default();
        }
        let shutdown = &self.inner.shutdown;
        shutdown.begin(self.core(), timeout);
        shutdown.report_blocking()
    }
}
