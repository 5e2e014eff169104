use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, select};
use nix::sys::signal::Signal;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::runtime::Handle;

use crate::shim::Shim;
use crate::worker::Worker;
use crate::{ReaperClosed, ShimExit};

/// A handle to a registered shim: a future that resolves to its exit, and a safe way to signal it.
///
/// Clones refer to the same shim, and each can be awaited in a different task, thread or tokio
/// runtime. The future resolves as soon as the exit status is known. If the owner holds the
/// `Child`, this may be before the zombie is reaped. If the shim has ended already, it resolves at
/// once.
///
/// Unlike with `tokio::process::Child`, the shim is reaped even if every handle is dropped.
///
/// # Errors
///
/// The future resolves to [`ReaperClosed`] if the reaper shuts down while the shim is running.
///
/// # Cancel safety
///
/// Dropping the future loses nothing: another clone, or a later [`try_exit`](Self::try_exit),
/// still returns the exit.
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
#[must_use = "dropping the handle is harmless, but only a handle reports how the shim ended"]
pub struct ShimHandle {
    shim: Arc<Shim<OwnedFd>>,
    worker: Arc<Worker>,
    guard: Option<Arc<SpawnGuard>>,
    /// This handle's key among the waiters.
    key: Option<u32>,
}

/// The pipes and the kill-on-drop option of a spawned shim; dropped with its last handle.
struct SpawnGuard {
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
        // The tokio runtime may have been dropped just before the shim was registered.
        worker.ensure_alive();
        Self {
            shim,
            worker,
            guard: None,
            key: None,
        }
    }

    /// Creates a handle that owns the pipes of the child. The registry processes its exit.
    pub(crate) fn from_child(
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
            handle.guard = Some(Arc::new(SpawnGuard {
                shim: Arc::clone(&handle.shim),
                worker: Arc::clone(&handle.worker),
                kill_on_drop,
                stdio: Mutex::new(stdio),
            }));
        }
        handle
    }

    /// Returns the pid of the shim. After the shim has ended, the pid may belong to another process;
    /// use [`signal`](Self::signal) to signal the shim safely.
    pub fn pid(&self) -> u32 {
        self.shim.pid
    }

    /// Returns true until the exit is known. After the reaper has shut down, returns whether the
    /// process still runs: it asks the pidfd, or compares the start time of the process if there is
    /// none.
    pub fn is_running(&self) -> bool {
        let (running, closed) = {
            let state = self.shim.state();
            (state.is_running(), state.is_closed())
        };
        running || (closed && self.shim.is_process_running(&self.worker.shared().kernel))
    }

    /// Returns the exit, if it is known.
    pub fn try_exit(&self) -> Option<ShimExit> {
        self.shim.state().exit()
    }

    /// Sends a signal to the shim, and never to another process that got its pid. It uses the
    /// pidfd, or compares the start time of the process if there is none. It also works after the
    /// reaper has shut down.
    ///
    /// # Errors
    ///
    /// Returns `ESRCH` if the shim has ended, otherwise the error of `kill(2)`, or without a pidfd
    /// the error of reading `/proc`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.shim.signal(&self.worker.shared().kernel, signal)
    }

    /// Sends SIGKILL to the shim.
    ///
    /// # Errors
    ///
    /// As for [`signal`](Self::signal).
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Stops the shim: sends SIGTERM, waits for up to `grace`, then sends SIGKILL and waits for the
    /// exit. Returns the exit in every case, also if the shim has ended already. Works in every
    /// executor: the reaper drives the timer.
    ///
    /// There is no timeout after the SIGKILL. The future never resolves if the process does not die
    /// of it (it is stuck in the kernel) or if this process lacks the permission to signal it. Wrap
    /// the future in [`tokio::time::timeout`] to limit the wait.
    ///
    /// # Errors
    ///
    /// Returns [`ReaperClosed`] if the reaper shuts down first. The SIGKILL may then not have been
    /// sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future sends no further signal. The shim stays registered.
    pub async fn stop(&self, grace: Duration) -> Result<ShimExit, ReaperClosed> {
        self.try_signal(Signal::SIGTERM);
        let expired = self.worker.shared().sleep(grace);
        if let Either::Left((exit, _)) = select(self.clone(), expired).await {
            return exit;
        }
        self.try_signal(Signal::SIGKILL);
        self.clone().await
    }

    /// Sends a signal to a shim that may already have ended.
    fn try_signal(&self, signal: Signal) {
        if let Err(error) = self.signal(signal) {
            tracing::debug!(pid = self.pid(), %signal, %error, "cannot signal the shim");
        }
    }

    /// Takes the writing end of the shim's stdin. Returns `None` if stdin is not piped, or is
    /// already taken.
    ///
    /// Awaiting the handle does not close the pipe. If the shim reads stdin to the end, take the
    /// pipe and drop it.
    ///
    /// The caller's tokio runtime drives the pipe, or the reaper's if the caller is not in one.
    pub fn take_stdin(&self) -> Option<ChildStdin> {
        self.take(|stdio| stdio.stdin.take(), ChildStdin::from_std)
    }

    /// Takes the reading end of the shim's stdout. Returns `None` if stdout is not piped, or is
    /// already taken.
    pub fn take_stdout(&self) -> Option<ChildStdout> {
        self.take(|stdio| stdio.stdout.take(), ChildStdout::from_std)
    }

    /// Takes the reading end of the shim's stderr. Returns `None` if stderr is not piped, or is
    /// already taken.
    pub fn take_stderr(&self) -> Option<ChildStderr> {
        self.take(|stdio| stdio.stderr.take(), ChildStderr::from_std)
    }

    fn take<S, T>(
        &self,
        take: impl FnOnce(&mut Stdio) -> Option<S>,
        convert: impl FnOnce(S) -> io::Result<T>,
    ) -> Option<T> {
        let pipe = take(&mut self.guard.as_ref()?.stdio())?;
        let runtime = Handle::try_current().unwrap_or_else(|_| self.worker.runtime());
        let _entered = runtime.enter();
        match convert(pipe) {
            Ok(pipe) => Some(pipe),
            Err(error) => {
                tracing::warn!(pid = self.pid(), %error, "cannot poll a pipe of the shim");
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
            guard: self.guard.clone(),
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

impl SpawnGuard {
    fn stdio(&self) -> MutexGuard<'_, Stdio> {
        self.stdio.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SpawnGuard {
    fn drop(&mut self) {
        if self.kill_on_drop {
            // Fails if the shim has already ended.
            let _ = self
                .shim
                .signal(&self.worker.shared().kernel, Signal::SIGKILL);
        }
    }
}

impl Stdio {
    fn is_piped(&self) -> bool {
        self.stdin.is_some() || self.stdout.is_some() || self.stderr.is_some()
    }
}
