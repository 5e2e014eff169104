use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::child::sealed::Reaper;
use crate::shim::Role;
use crate::stop;
use crate::worker::Worker;
use crate::{
    ChildProcess, Exits, ProcessRef, ReaperStats, RegisterError, ShimHandle, ShutdownReport,
    SpawnCommand, SpawnOptions, StopReport,
};

/// A reaper of child processes. It reaps those that are registered with it, and no others.
///
/// Clones are cheap and refer to the same reaper. A process stays registered until it has ended, even
/// if its handle, a future or every `ShimReaper` is dropped.
///
/// # Which method
///
/// | you have | use | the reaper |
/// |---|---|---|
/// | a `Command` | [`spawn`](Self::spawn) | creates the child, and reaps it when it exits |
/// | a `Child` that you give up | [`register_child`](Self::register_child) | reaps it when it exits |
/// | a pid or pidfd whose `Child` an owner may hold | [`register`](Self::register) | reaps it if the owner does not wait for it within the grace period |
/// | a pid or pidfd that is not your child | [`attach`](Self::attach) | observes its exit, never waits for it |
///
/// Use `tokio::process` instead if one task starts a child and awaits its exit. The reaper is for
/// children that outlive the code that started them.
///
/// | at the end | children that still run | in code that cannot await |
/// |---|---|---|
/// | [`shutdown_stopping`](Self::shutdown_stopping) | are stopped and reaped | [`shutdown_stopping_sync`](Self::shutdown_stopping_sync), [`stopping_drop_guard`](Self::stopping_drop_guard) |
/// | [`shutdown`](Self::shutdown) | are left running | [`shutdown_sync`](Self::shutdown_sync), [`drop_guard`](Self::drop_guard) |
///
/// Without a shutdown, the reaper runs until every `ShimReaper` is dropped and every shim has ended.
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
#[derive(Clone)]
pub struct ShimReaper {
    inner: Arc<ShutdownOnDrop>,
}

/// All clones of a reaper share it, its handles do not. When it is dropped, the worker ends once
/// every shim has ended.
#[derive(Debug)]
struct ShutdownOnDrop {
    worker: Arc<Worker>,
}

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        self.worker.abandon();
    }
}

impl ShimReaper {
    pub(crate) fn new(worker: Arc<Worker>) -> Self {
        Self {
            inner: Arc::new(ShutdownOnDrop { worker }),
        }
    }

    /// Spawns a shim: creates the child, which executes the program, and registers it.
    ///
    /// Use the [`Command`](crate::Command) of this crate, on Linux 5.4 or later: the system call that
    /// creates the child also returns its pidfd. From Linux 6.15 on, no foreign wait can then take the exit
    /// status away from the reaper. Commands of std and tokio are [accepted too](SpawnCommand).
    ///
    /// Like the `spawn` of tokio, the call blocks the calling thread until the child executes the program.
    /// If the command sets a parent death signal, the kernel sends it when *that thread* exits
    /// (`PR_SET_PDEATHSIG(2const)`).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.spawn(Command::new("sh").args(["-c", "exit 3"]))?;
    /// assert_eq!(shim.await?.code(), Some(3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Commands of std and tokio
    ///
    /// std forks, because the child opens its own pidfd before it executes the program: see
    /// [`ReaperBuilder::early_pidfd`](crate::ReaperBuilder::early_pidfd). If a
    /// [`pre_exec`](std::os::unix::process::CommandExt::pre_exec) closure of the command closes the
    /// descriptors of the child, that fails, and a foreign wait can hide the exit status of a child that
    /// exits at once.
    ///
    /// The child joins the process group of [`SpawnOptions`] after the `pre_exec` closures of the command
    /// have run; with 0 it creates its group before, as in std.
    ///
    /// A command that is passed as `&mut` keeps what the reaper has added to it: the process group of
    /// [`SpawnOptions`], except one that the child joins as above, and with an early pidfd a closure,
    /// which makes std fork whenever it spawns the command again.
    ///
    /// # Errors
    ///
    /// Returns the error of the `spawn` of the command, or after a shutdown an error that contains
    /// [`ReaperClosed`](crate::ReaperClosed). No process is left behind in either case. The error of a
    /// [`Command`](crate::Command) contains a [`SpawnError`](pidfd_spawn::SpawnError), which names the
    /// step that failed.
    ///
    /// std itself panics if it cannot set the user, the groups or the process group that a command asks
    /// for, or a `pre_exec` closure of the command fails, *and* another wait has reaped that child. This function catches the panic,
    /// after the panic hook has run, and returns an error of the kind [`Other`](io::ErrorKind::Other). A
    /// program that is built with `panic = "abort"` ends. A [`Command`](crate::Command) of this crate never
    /// panics.
    pub fn spawn(&self, command: impl SpawnCommand) -> io::Result<ShimHandle> {
        self.spawn_with(command, SpawnOptions::new())
    }

    /// Spawns a shim with options, otherwise like [`spawn`](Self::spawn).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper, SpawnOptions};
    ///
    /// let reaper = ShimReaper::start();
    /// let options = SpawnOptions::new().process_group(0);
    /// let shim = reaper.spawn_with(Command::new("sh").args(["-c", "sleep 60; :"]), options)?;
    /// let exit = shim.kill_group().await?; // The shell and its `sleep`.
    /// assert_eq!(exit.signal(), Some(9));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`spawn`](Self::spawn).
    pub fn spawn_with(
        &self,
        mut command: impl SpawnCommand,
        options: SpawnOptions,
    ) -> io::Result<ShimHandle> {
        let worker = self.live_worker();
        let kill_on_drop = options.kill_on_drop || command.kills_on_drop();
        let command = command.as_command();
        let (shim, pipes) = worker.shared().spawn(command, options.process_group)?;
        Ok(ShimHandle::with_pipes(
            shim,
            Arc::clone(worker),
            pipes,
            kill_on_drop,
        ))
    }

    /// Registers a child process by [pid or pidfd](ProcessRef), while its owner may still hold its
    /// `Child`. If no code waits for the child, use [`register_child`](Self::register_child): it needs no
    /// grace period.
    ///
    /// When the process exits, the handle resolves at once, and the owner has the
    /// [grace period](crate::ReaperBuilder::owner_grace) to wait for it and get its status. After that the
    /// reaper reaps it.
    ///
    /// If the process is already registered, this returns another handle to the same shim. If no
    /// process has this pid, or it is not a child of this process, the handle resolves to an exit
    /// without a status; use [`attach`](Self::attach) to observe a process that is not a child.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::builder().owner_grace(Duration::from_secs(60)).start();
    /// let mut child = std::process::Command::new("true").spawn()?;
    ///
    /// let shim = reaper.register(child.id())?;
    /// assert!(shim.await?.success());
    /// assert!(child.wait()?.success()); // The owner gets the status too.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`RegisterError`] if the pid is 0, the pid of this process or above `i32::MAX`, if the
    /// descriptor is not a pidfd, and after a shutdown.
    pub fn register(&self, process: impl ProcessRef) -> Result<ShimHandle, RegisterError> {
        self.register_as(process, Role::Shared)
    }

    /// Registers a [child](ChildProcess), and takes ownership of it and its pipes. The reaper reaps it
    /// when it exits.
    ///
    /// Use [`spawn`](Self::spawn) where you can. A child of `pidfd-spawn` comes with its pidfd; for the
    /// other types the reaper opens one, and a foreign wait that comes before it hides the exit status.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::start();
    /// let child = tokio::process::Command::new("true").spawn()?;
    /// let shim = reaper.register_child(child)?;
    /// assert!(shim.await?.success());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Children of tokio
    ///
    /// The child does not depend on its tokio runtime any more. `kill_on_drop` has no effect until
    /// the reaper shuts down: it then drops the `Child` of a process that still runs. tokio kills the
    /// process if `kill_on_drop` is set, and waits for it in any case, as long as a tokio runtime runs.
    /// The reaper does not wait for its exit: its handles resolve to
    /// [`ReaperClosed`](crate::ReaperClosed), and the report lists it as still running.
    ///
    /// tokio knows a child by its pid only, so the reaper reaps it through its `Child`. If a foreign
    /// wait comes first, the reaper leaks that `Child` and its descriptor, because dropping it could signal,
    /// or wait for, another process that has got the pid.
    ///
    /// # Errors
    ///
    /// Returns [`RegisterError`] after a shutdown, and for a child of tokio that has been waited for.
    /// [`RegisterError::into_child`] returns the child.
    pub fn register_child<C: ChildProcess>(
        &self,
        child: C,
    ) -> Result<ShimHandle, RegisterError<C>> {
        let worker = self.live_worker();
        let adopted = child.adopt(Reaper(worker.shared()))?;
        let worker = Arc::clone(worker);
        Ok(ShimHandle::with_pipes(
            adopted.shim,
            worker,
            adopted.pipes,
            false,
        ))
    }

    /// Registers a process that is not a child of this process, such as a shim that a previous run
    /// of the daemon started. The reaper observes its exit, but never waits for it.
    ///
    /// The handle resolves when the process has exited. It has the exit status if the kernel reports
    /// it: from `/proc`, while the process is a zombie that this process may inspect
    /// (`proc_pid_stat(5)`, field 52), and on Linux 6.15 and later also after its parent has reaped
    /// it.
    ///
    /// Do not attach to a child of this process, because the reaper does not reap it then; use
    /// [`register`](Self::register).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{CollectedBy, ShimReaper, Signal};
    ///
    /// # let script = "sleep 60 > /dev/null 2>&1 & echo $!";
    /// # let output = std::process::Command::new("sh").args(["-c", script]).output()?;
    /// # let pid_file = String::from_utf8(output.stdout)?;
    /// let pid: u32 = pid_file.trim().parse()?; // Of a shim that an earlier run started.
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.attach(pid)?;
    /// shim.send_signal(Signal::SIGKILL)?;
    /// assert_eq!(shim.await?.collected_by, CollectedBy::Observed);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`register`](Self::register).
    pub fn attach(&self, process: impl ProcessRef) -> Result<ShimHandle, RegisterError> {
        self.register_as(process, Role::Attached)
    }

    fn register_as(
        &self,
        process: impl ProcessRef,
        role: Role,
    ) -> Result<ShimHandle, RegisterError> {
        let worker = self.live_worker();
        let process = process
            .into_process()
            .map_err(|kind| RegisterError::new(0, kind))?;
        let (pid, pidfd) = (process.pid, process.pidfd);
        let shim = worker.shared().register_process(pid, pidfd, role)?;
        Ok(ShimHandle::new(shim, Arc::clone(worker)))
    }

    /// Returns the pids of the registered processes, sorted. Those that are dead and in the grace period of
    /// their owner are among them.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// assert_eq!(reaper.registered(), [shim.id()]);
    ///
    /// shim.kill().await?;
    /// assert!(reaper.registered().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn registered(&self) -> Vec<u32> {
        self.worker().shared().directory.pids()
    }

    /// Returns the counters and the health of the reaper. Takes no lock.
    ///
    /// Use it to export or log numbers. To be called for each event, implement
    /// [`Metrics`](crate::Metrics).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// reaper.spawn(Command::new("true"))?.await?;
    /// let stats = reaper.stats();
    /// assert_eq!((stats.registered, stats.reaped_total), (0, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> ReaperStats {
        self.worker()
            .shared()
            .counters
            .snapshot(self.worker().is_alive())
    }

    /// Returns whether a worker drives the reaper; false after a shutdown.
    ///
    /// If the tokio runtime that drives the reaper is dropped, a dedicated thread takes over, and
    /// [`respawns_total`](ReaperStats::respawns_total) rises. While nothing is registered, or if that
    /// thread cannot be started, this returns false, and each registration and each poll of a handle
    /// tries again.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::start();
    /// assert!(reaper.worker_alive());
    /// reaper.shutdown().await;
    /// assert!(!reaper.worker_alive());
    /// # Ok(())
    /// # }
    /// ```
    pub fn worker_alive(&self) -> bool {
        self.worker().is_alive()
    }

    /// Returns a stream of all exits from now on. It buffers unread exits without a limit; use
    /// [`exits_bounded`](Self::exits_bounded) where the reader may be slow.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use futures::StreamExt;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let mut exits = reaper.exits();
    /// let shim = reaper.spawn(Command::new("true"))?;
    /// assert_eq!(exits.next().await.map(|exit| exit.pid), Some(shim.id()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn exits(&self) -> Exits {
        let exits = self.worker().shared().subscribers.subscribe();
        self.worker().ensure_alive();
        exits
    }

    /// Returns a stream of all exits from now on that buffers up to `capacity` unread exits. When it
    /// is full, the next exit replaces the oldest one. A capacity of 0 is raised to 1.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use futures::StreamExt;
    /// use std::process::Command;
    /// use shim_reaper::ShimReaper;
    ///
    /// let reaper = ShimReaper::start();
    /// let mut exits = reaper.exits_bounded(1);
    /// reaper.spawn(Command::new("false"))?.await?;
    /// reaper.spawn(Command::new("true"))?.await?;
    ///
    /// assert_eq!(exits.dropped(), 1);
    /// assert_eq!(exits.next().await.and_then(|exit| exit.code()), Some(0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn exits_bounded(&self, capacity: usize) -> Exits {
        let exits = self
            .worker()
            .shared()
            .subscribers
            .subscribe_bounded(capacity);
        self.worker().ensure_alive();
        exits
    }

    /// Stops every registered child: sends SIGTERM to all, and SIGCONT in case they are stopped, waits
    /// for up to `grace`, sends SIGKILL to those that still run, and waits for up to 5 seconds for these. Returns a report.
    ///
    /// A shim is stopped with its [group](crate::ShimHandle::send_group_signal): it counts as running
    /// until the group has no process but zombies. The groups of shims that have ended before are left
    /// alone.
    ///
    /// Attached processes, and children that are registered later, get no signal. The reaper continues to
    /// run, and the handles resolve to the exits. To refuse new shims too, use
    /// [`shutdown_stopping`](Self::shutdown_stopping).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    ///
    /// let report = reaper.stop_all(Duration::from_secs(10)).await;
    /// assert_eq!((report.stopped, report.killed.len()), (1, 0));
    /// assert_eq!(shim.await?.signal(), Some(15));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Once the future has been polled, a thread does all this, even if the future is dropped. If no
    /// thread can be started, the future blocks the calling thread.
    pub async fn stop_all(&self, grace: Duration) -> StopReport {
        stop::stop_all_on_thread(self.worker().core(), grace).await
    }

    /// Stops every registered child like [`stop_all`](Self::stop_all), for code that cannot await,
    /// inside or outside a tokio runtime. It blocks, and does not depend on the progress of any task
    /// or thread.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// reaper.spawn(Command::new("sleep").arg("60"))?;
    /// assert_eq!(reaper.stop_all_sync(Duration::from_secs(10)).stopped, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stop_all_sync(&self, grace: Duration) -> StopReport {
        stop::stop_all(self.worker().core(), grace)
    }

    /// Shuts down the reaper, and returns a report of the shims that are still running. Use
    /// [`shutdown_stopping`](Self::shutdown_stopping) to end those too.
    ///
    /// The reaper refuses new shims and reaps every registered shim that has exited, even in a
    /// grace period. The handles of the others resolve to [`ReaperClosed`](crate::ReaperClosed);
    /// their processes keep running, and nothing reaps them, except [children of
    /// tokio](Self::register_child), which it returns to tokio. To end them too, use
    /// [`shutdown_stopping`](Self::shutdown_stopping). If a stopping shutdown has begun, or its token
    /// is cancelled, this waits for it.
    ///
    /// The shutdown takes milliseconds, whatever the sweep interval. If shims have been sent
    /// SIGKILL, through their handles or by `kill_on_drop`, it waits for up to 5 seconds until they
    /// have exited, and reaps them. Every caller gets the same report.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ReaperClosed, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    ///
    /// let report = reaper.shutdown().await;
    /// assert_eq!(report.still_running, [shim.id()]);
    /// assert_eq!(shim.wait().await, Err(ReaperClosed));
    /// shim.start_kill()?; // The handle can still signal it.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Once the future has been polled, the shutdown continues even if the future is dropped.
    pub async fn shutdown(&self) -> ShutdownReport {
        stop::shutdown_on_thread(self.worker().core()).await
    }

    /// Shuts down the reaper like [`shutdown`](Self::shutdown), for code that cannot await, such as
    /// a `Drop` implementation or an `atexit` handler, inside or outside a tokio runtime. It does not
    /// depend on the progress of any task or thread.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// reaper.spawn(Command::new("sleep").arg("60"))?.start_kill()?;
    /// assert!(reaper.shutdown_sync().still_running.is_empty()); // It is reaped.
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_sync(&self) -> ShutdownReport {
        stop::shutdown(self.worker().core())
    }

    /// Stops every registered child like [`stop_all`](Self::stop_all), and then shuts down the
    /// reaper.
    ///
    /// The reaper refuses new shims from the first poll on. It reaps the children as they exit. Their
    /// handles resolve to the exits, and so does [`stop`](crate::ShimHandle::stop) in a task that calls it
    /// in the meantime. The report lists as still running the attached processes, and the children that did
    /// not exit within 5 seconds after the SIGKILL.
    ///
    /// If several stopping shutdowns overlap, the first sends SIGTERM, and the shortest grace period counts.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::start();
    /// let handle = reaper.spawn(Command::new("sleep").arg("60"))?;
    ///
    /// let report = reaper.shutdown_stopping(Duration::from_secs(10)).await;
    /// assert!(report.killed.is_empty() && report.still_running.is_empty());
    /// assert_eq!(handle.await?.signal(), Some(15));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// As for [`stop_all`](Self::stop_all).
    pub async fn shutdown_stopping(&self, grace: Duration) -> ShutdownReport {
        stop::shutdown_stopping_on_thread(self.worker().core(), grace).await
    }

    /// Stops every registered child and shuts down the reaper like
    /// [`shutdown_stopping`](Self::shutdown_stopping), for code that cannot await. It blocks, and does
    /// not depend on the progress of any task or thread.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use shim_reaper::{Command, ShimReaper};
    ///
    /// let reaper = ShimReaper::builder().start_dedicated()?;
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// reaper.shutdown_stopping_sync(Duration::from_secs(10));
    /// assert!(!shim.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_stopping_sync(&self, grace: Duration) -> ShutdownReport {
        stop::shutdown_stopping(self.worker().core(), grace)
    }

    fn worker(&self) -> &Arc<Worker> {
        &self.inner.worker
    }

    fn live_worker(&self) -> &Arc<Worker> {
        let worker = self.worker();
        worker.ensure_alive();
        worker
    }
}

impl fmt::Debug for ShimReaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShimReaper")
            .field("registered", &self.stats().registered)
            .field("closed", &self.worker().shared().is_closing())
            .finish_non_exhaustive()
    }
}
