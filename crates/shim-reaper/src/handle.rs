use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::runtime::Handle;

use crate::shim::Shim;
use crate::worker::Worker;
use crate::{ReaperClosed, ShimExit};

/// A registered shim: a future of its exit, and a safe way to signal it.
///
/// Clones refer to the same shim, and each may be awaited by another task, thread or runtime. The
/// future resolves as soon as the death and its status are known, which may be before the zombie
/// is gone if somebody else holds the `Child`. Awaiting a shim that ended long ago resolves at once.
///
/// Unlike `tokio::process::Child`, the handle is not what keeps the shim from becoming a zombie:
/// drop every handle and it is still collected.
///
/// # Errors
///
/// The future resolves to [`ReaperClosed`] if the reaper shuts down while the shim runs.
///
/// # Cancel safety
///
/// Dropping the future, before or between polls, loses nothing: another clone, or a later
/// [`try_exit`](Self::try_exit), still gets the exit.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::process::Command;
/// use shim_reaper::{ShimReaper, Signal};
///
/// let reaper = ShimReaper::start();
/// let mut shim = Command::new("sleep");
/// shim.arg("60");
///
/// let handle = reaper.spawn(shim).await?;
/// assert!(handle.is_running());
/// handle.signal(Signal::SIGTERM)?;
/// assert_eq!(handle.clone().await?.signal(), Some(15));
/// assert_eq!(handle.try_exit().and_then(|exit| exit.shell_code()), Some(143));
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping a handle is harmless, but only it can tell how the shim ended"]
pub struct ShimHandle {
    shim: Arc<Shim<OwnedFd>>,
    worker: Arc<Worker>,
    spawned: Option<Arc<Spawned>>,
    /// This handle's place among the waiters.
    key: Option<u32>,
}

/// What belongs to the handles of a spawned shim, and ends with the last of them.
struct Spawned {
    shim: Arc<Shim<OwnedFd>>,
    worker: Arc<Worker>,
    kill_on_drop: bool,
    stdio: Mutex<Stdio>,
}

struct Stdio {
    stdin: Option<std::process::ChildStdin>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
}

impl ShimHandle {
    pub(crate) fn new(shim: Arc<Shim<OwnedFd>>, worker: Arc<Worker>) -> Self {
        Self {
            shim,
            worker,
            spawned: None,
            key: None,
        }
    }

    /// The handle takes the child's pipes; its exit is the registry's business.
    pub(crate) fn of_child(
        shim: Arc<Shim<OwnedFd>>,
        worker: Arc<Worker>,
        child: Child,
        kill_on_drop: bool,
    ) -> Self {
        let stdio = Stdio {
            stdin: child.stdin,
            stdout: child.stdout,
            stderr: child.stderr,
        };
        let mut handle = Self::new(shim, worker);
        if kill_on_drop || stdio.is_piped() {
            handle.spawned = Some(Arc::new(Spawned {
                shim: Arc::clone(&handle.shim),
                worker: Arc::clone(&handle.worker),
                kill_on_drop,
                stdio: Mutex::new(stdio),
            }));
        }
        handle
    }

    /// The process id. After the shim has ended it may belong to another process: to signal, use
    /// the handle, which knows the difference.
    pub fn pid(&self) -> u32 {
        self.shim.pid
    }

    /// True until the exit is known, or the reaper has shut down.
    pub fn is_running(&self) -> bool {
        self.shim.state().is_running()
    }

    /// The exit, if it is known.
    pub fn try_exit(&self) -> Option<ShimExit> {
        self.shim.state().exit()
    }

    /// Sends a signal, to this process and never to another that got its pid: through the pidfd,
    /// or checked against the process start time where there is none. Works after the reaper has
    /// shut down, too.
    ///
    /// # Errors
    ///
    /// `ESRCH` once the shim has ended; otherwise what `kill(2)` says, or, without a pidfd, what
    /// reading `/proc` says.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.shim.signal(&self.worker.intake().kernel, signal)
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Sends SIGTERM, waits for up to `grace`, then sends SIGKILL and waits for the end. A shim
    /// that has ended already, or ends by itself meanwhile, is as good.
    ///
    /// Waits for ever on a process that survives SIGKILL (one stuck in the kernel), or that may
    /// not be signalled: wrap it in [`tokio::time::timeout`] if that must not be.
    ///
    /// # Errors
    ///
    /// [`ReaperClosed`] if the reaper shuts down first; the SIGKILL is then left to the caller.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the procedure: signals already sent stay sent, no further one is
    /// sent, and the shim stays registered.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with a time driver, as every tokio timer.
    pub async fn stop(&self, grace: Duration) -> Result<ShimExit, ReaperClosed> {
        self.signal_in_passing(Signal::SIGTERM);
        if let Ok(ended) = tokio::time::timeout(grace, self.clone()).await {
            return ended;
        }
        self.signal_in_passing(Signal::SIGKILL);
        self.clone().await
    }

    /// For when it may have ended by itself.
    fn signal_in_passing(&self, signal: Signal) {
        if let Err(error) = self.signal(signal) {
            tracing::debug!(pid = self.pid(), %signal, %error, "signal not sent");
        }
    }

    /// The writing end of the shim's stdin, if it was piped and nobody has taken it. Awaiting the
    /// handle does not close it: a shim that reads to the end needs it taken and dropped.
    ///
    /// The pipes are driven by the caller's tokio runtime, or by the reaper's where there is none.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.take(|stdio| stdio.stdin.take(), ChildStdin::from_std)
    }

    /// The reading end of the shim's stdout, if it was piped and nobody has taken it.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.take(|stdio| stdio.stdout.take(), ChildStdout::from_std)
    }

    /// The reading end of the shim's stderr, if it was piped and nobody has taken it.
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.take(|stdio| stdio.stderr.take(), ChildStderr::from_std)
    }

    fn take<S, T>(
        &self,
        take: impl FnOnce(&mut Stdio) -> Option<S>,
        convert: impl FnOnce(S) -> io::Result<T>,
    ) -> Option<T> {
        let pipe = take(&mut self.spawned.as_ref()?.stdio())?;
        let runtime = Handle::try_current().unwrap_or_else(|_| self.worker.runtime());
        let _entered = runtime.enter();
        match convert(pipe) {
            Ok(pipe) => Some(pipe),
            Err(error) => {
                tracing::warn!(pid = self.pid(), %error, "a pipe of the shim could not be polled");
                None
            }
        }
    }
}

impl Clone for ShimHandle {
    fn clone(&self) -> Self {
        Self {
            shim: Arc::clone(&self.shim),
            worker: Arc::clone(&self.worker),
            spawned: self.spawned.clone(),
            key: None,
        }
    }
}

impl Future for ShimHandle {
    type Output = Result<ShimExit, ReaperClosed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let exit = this.shim.poll_exit(&mut this.key, cx.waker());
        if exit.is_pending() {
            this.worker.ensure_alive();
        }
        exit
    }
}

impl Drop for ShimHandle {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shim.stop_waiting(key);
        }
    }
}

impl fmt::Debug for ShimHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShimHandle")
            .field("pid", &self.pid())
            .field("exit", &self.try_exit())
            .finish_non_exhaustive()
    }
}

impl Spawned {
    fn stdio(&self) -> MutexGuard<'_, Stdio> {
        self.stdio.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.kill_on_drop {
            // It may have ended by itself.
            let _ = self
                .shim
                .signal(&self.worker.intake().kernel, Signal::SIGKILL);
        }
    }
}

impl Stdio {
    fn is_piped(&self) -> bool {
        self.stdin.is_some() || self.stdout.is_some() || self.stderr.is_some()
    }
}
