use std::io;
use std::process::{Child, Command};
use std::sync::Arc;

use crate::shim::Role;
use crate::worker::Worker;
use crate::{
    Exits, ReaperBuilder, ReaperStats, RegisterError, ShimHandle, ShutdownReport, SpawnOptions,
};

/// Collects the children that it was given, and only those.
///
/// Clones are cheap and refer to the same reaper. What is registered stays registered until its
/// process has ended, whatever is dropped: a handle, a future, or every `ShimReaper`.
///
/// # Which method
///
/// | you have | use | the reaper |
/// |---|---|---|
/// | a `Command` | [`spawn`](Self::spawn) | forks, and collects at once |
/// | a `Child` that you give away | [`register_child`](Self::register_child) | collects at once |
/// | a pid whose `Child` somebody may hold | [`register`](Self::register) | lets the owner go first, then collects |
/// | a pid that is not your child | [`attach`](Self::attach) | observes, never waits |
///
/// To run a child that one place awaits to its end, `tokio::process` is enough. The reaper is for
/// children that outlive the code that started them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::process::Command;
/// use shim_reaper::ShimReaper;
///
/// let reaper = ShimReaper::start();
/// let child = Command::new("true").spawn()?;
///
/// let handle = reaper.register_child(child)?;
/// assert!(handle.await?.success());
/// assert_eq!(reaper.stats().reaped_total, 1);
/// reaper.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ShimReaper {
    front: Arc<Front>,
}

/// Shared by the clones of a reaper, but not by its handles.
#[derive(Debug)]
struct Front {
    worker: Arc<Worker>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.worker.abandon();
    }
}

impl ShimReaper {
    pub(crate) fn new(worker: Arc<Worker>) -> Self {
        Self {
            front: Arc::new(Front { worker }),
        }
    }

    /// Starts a reaper with the defaults on the current tokio runtime.
    ///
    /// # Panics
    ///
    /// As [`ReaperBuilder::start`].
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Settings first, then one of the three ways to start.
    pub fn builder() -> ReaperBuilder {
        ReaperBuilder::new()
    }

    /// Starts a shim: forks, executes and registers.
    ///
    /// The fork happens on the calling thread, as in `tokio::process`, and takes as long as the
    /// kernel needs up to the `exec`. A shim that asks to die with its parent
    /// (`PR_SET_PDEATHSIG`) dies with that thread.
    ///
    /// Where SIGCHLD is ignored, or somebody else in the process has been seen collecting shims,
    /// the child opens its pidfd itself before it executes anything, so that even the shortest
    /// life is told; that costs a full `fork` in place of std's `vfork`.
    ///
    /// # Errors
    ///
    /// What [`Command::spawn`] says, or an error with [`ReaperClosed`](crate::ReaperClosed) inside
    /// after shutdown; no process is left behind in either case.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens before the first poll and everything in it: the child is registered
    /// whenever it exists.
    pub async fn spawn(&self, command: Command) -> io::Result<ShimHandle> {
        self.spawn_with(command, SpawnOptions::new()).await
    }

    /// [`spawn`](Self::spawn) with options.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    ///
    /// # Cancel safety
    ///
    /// As [`spawn`](Self::spawn).
    pub async fn spawn_with(
        &self,
        mut command: Command,
        options: SpawnOptions,
    ) -> io::Result<ShimHandle> {
        if options.process_group {
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
        }
        let worker = self.live_worker();
        let (shim, child) = worker
            .core()
            .intake
            .spawn(&mut command, options.process_group)?;
        Ok(ShimHandle::of_child(
            shim,
            Arc::clone(worker),
            child,
            options.kill_on_drop,
        ))
    }

    /// Registers a process by pid, for when somebody else may hold its `Child`.
    ///
    /// When it dies, that owner has the [grace period](ReaperBuilder::owner_grace) to wait for it
    /// and gets the true status; so does the handle, at once. After that the reaper collects it.
    ///
    /// A pid that is registered already gives another handle to the same shim. A pid that does not
    /// exist, or is not a child of this process, resolves as vanished: [`attach`](Self::attach) is
    /// what follows such a process to its end.
    ///
    /// # Errors
    ///
    /// [`RegisterError`] for 0, this process itself, a number above `i32::MAX`, and after shutdown.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens before the first poll and everything in it.
    pub async fn register(&self, pid: u32) -> Result<ShimHandle, RegisterError> {
        let worker = self.live_worker();
        let shim = worker.intake().register(pid, Role::Shared)?;
        Ok(ShimHandle::new(shim, Arc::clone(worker)))
    }

    /// Registers a child and takes it over, with its pipes; it is collected as soon as it dies.
    /// Not async, so that it can be called from a `Drop`.
    ///
    /// # Errors
    ///
    /// After shutdown; [`RegisterError::into_child`] then gives the child back.
    pub fn register_child(&self, mut child: Child) -> Result<ShimHandle, RegisterError> {
        let worker = self.live_worker();
        match worker.intake().adopt(&mut child) {
            Ok(shim) => Ok(ShimHandle::of_child(shim, Arc::clone(worker), child, false)),
            Err(kind) => Err(RegisterError::new(child.id(), kind).with_child(child)),
        }
    }

    /// Follows a process that is not our child, such as a shim that an earlier run of the runtime
    /// left behind. It is never waited on, and its parent is not delayed. The handle resolves at
    /// its death, with its status where that can be told: from `/proc` while it is a zombie that
    /// we may inspect (`proc_pid_stat(5)`, field 52), or from Linux 6.15 on after it was collected.
    ///
    /// Attaching to a child of our own leaves its zombie to whoever waits for it: use
    /// [`register`](Self::register) for those.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register).
    ///
    /// # Cancel safety
    ///
    /// As [`register`](Self::register).
    pub async fn attach(&self, pid: u32) -> Result<ShimHandle, RegisterError> {
        let worker = self.live_worker();
        let shim = worker.intake().register(pid, Role::Attached)?;
        Ok(ShimHandle::new(shim, Arc::clone(worker)))
    }

    /// The pids that are registered now, sorted.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn registered(&self) -> Vec<u32> {
        self.worker().intake().directory.pids()
    }

    /// What the reaper has done so far. Takes no lock.
    pub fn stats(&self) -> ReaperStats {
        self.worker()
            .intake()
            .counters
            .read(self.worker().is_alive())
    }

    /// False once the reaper has shut down.
    ///
    /// When the tokio runtime that drove the reaper is dropped, a dedicated thread drives it from
    /// then on, and [`respawns_total`](ReaperStats::respawns_total) rises. While that thread cannot
    /// be started this is false, and each registration and each poll of a handle tries again.
    pub fn worker_alive(&self) -> bool {
        self.worker().is_alive()
    }

    /// Every exit from now on.
    pub fn exits(&self) -> Exits {
        self.worker().intake().subscribers.subscribe()
    }

    /// Shuts down: refuses new shims, collects what has exited, grace period or not, resolves the
    /// handles of the rest to [`ReaperClosed`](crate::ReaperClosed), and says which still run.
    /// Returns within milliseconds, whatever the sweep interval, and gives every caller the same
    /// report. The shims that still run are left as they are.
    ///
    /// # Cancel safety
    ///
    /// The shutdown goes on without the future, once that has been polled.
    pub async fn shutdown(&self) -> ShutdownReport {
        self.worker().core().close().await
    }

    /// [`shutdown`](Self::shutdown) for code that cannot await: a `Drop`, an `atexit` handler, in
    /// or out of a runtime. Depends on no task or thread to make progress.
    pub fn shutdown_sync(&self) -> ShutdownReport {
        self.worker().core().close_blocking()
    }

    fn worker(&self) -> &Arc<Worker> {
        &self.front.worker
    }

    fn live_worker(&self) -> &Arc<Worker> {
        let worker = self.worker();
        worker.ensure_alive();
        worker
    }
}
