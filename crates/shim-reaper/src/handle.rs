use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::libc;

use crate::pipes::Pipes;
use crate::shim::Shim;
use crate::spawn_guard::SpawnGuard;
use crate::worker::Worker;
use crate::{ReaperClosed, ShimExit, Signal};

/// A handle to a registered shim: a future that resolves to its exit, and a safe way to signal it.
///
/// The methods are those of [`tokio::process::Child`], with these differences:
///
/// * The shim is reaped even if every handle is dropped.
/// * All methods take `&self`, and clones refer to the same shim, so that each can be awaited in a
///   different task, thread or tokio runtime.
/// * The waits return a [`ShimExit`], or [`ReaperClosed`], and leave a piped stdin open: if the shim
///   reads stdin to the end, [take](Self::take_stdin) and drop it.
/// * The pid is known also after the exit.
///
/// | to | use |
/// |---|---|
/// | await the exit | [`wait`](Self::wait), `(&handle).await`, or the handle itself, also as `&mut handle` in `select!` |
/// | await it for a limited time | [`wait_timeout`](Self::wait_timeout) |
/// | wait for it in a thread | [`wait_blocking`](Self::wait_blocking) |
/// | check without waiting | [`try_wait`](Self::try_wait) |
/// | end the shim | [`stop`](Self::stop) with a grace period, [`kill`](Self::kill) without |
/// | end it with its group | [`stop_group`](Self::stop_group), [`kill_group`](Self::kill_group) |
///
/// Each resolves as soon as the exit status is known, and at once if the shim has ended already. If an
/// owner holds the `Child`, this may be before the zombie is reaped.
///
/// # Errors
///
/// The future resolves to [`ReaperClosed`] if the reaper shuts down while the shim is running.
///
/// # Cancel safety
///
/// Dropping a future loses nothing: another one, or a later [`try_wait`](Self::try_wait), still
/// returns the exit.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shim_reaper::{Command, ShimReaper, Signal};
///
/// let reaper = ShimReaper::start();
/// let handle = reaper.spawn(Command::new("sleep").arg("60"))?;
/// assert!(handle.try_wait()?.is_none());
/// handle.send_signal(Signal::SIGTERM)?;
/// let exit = handle.wait().await?;
/// assert_eq!(exit.signal(), Some(15));
/// assert_eq!(exit.shell_code(), Some(143));
/// # Ok(())
/// # }
/// ```
pub struct ShimHandle {
    pub(crate) shim: Arc<Shim<OwnedFd>>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) guard: Option<Arc<SpawnGuard>>,
    /// The key among the waiters of the shim, if the handle itself is awaited.
    pub(crate) key: Option<u32>,
    /// A duplicate, because the worker closes the pidfd when it has reaped the process.
    pidfd: OnceLock<OwnedFd>,
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
            pidfd: OnceLock::new(),
        }
    }

    /// Creates a handle that owns the pipes of the shim.
    pub(crate) fn with_pipes(
        shim: Arc<Shim<OwnedFd>>,
        worker: Arc<Worker>,
        pipes: Pipes,
        kill_on_drop: bool,
    ) -> Self {
        let mut handle = Self::new(shim, worker);
        handle.guard = SpawnGuard::new(&handle.shim, &handle.worker, pipes, kill_on_drop);
        handle
    }

    /// Returns the pid of the shim. After the shim has ended, the pid may belong to another process;
    /// use [`send_signal`](Self::send_signal) to signal the shim safely.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("true"))?;
    /// let exit = shim.wait().await?;
    /// assert_eq!(exit.pid, shim.id());
    /// # Ok(())
    /// # }
    /// ```
    pub fn id(&self) -> u32 {
        self.shim.pid
    }

    /// Returns true until the exit is known. After the reaper has shut down, it returns whether the
    /// process still runs, and asks the kernel: by the pidfd, or by comparing the start time of the process
    /// if there is none.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// assert!(shim.is_running());
    /// shim.kill().await?;
    /// assert!(!shim.is_running());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_running(&self) -> bool {
        let (running, closed) = {
            let state = self.shim.state();
            (state.is_running(), state.is_closed())
        };
        running || (closed && self.shim.is_process_running(&self.worker.shared().kernel))
    }

    /// Sends a signal to the shim, and never to another process that has got its pid. It uses the
    /// pidfd, or compares the start time of the process if there is none. It also works after the
    /// reaper has shut down.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use shim_reaper::Signal;
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// shim.send_signal(Signal::SIGHUP)?;
    /// assert_eq!(shim.await?.signal(), Some(1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns `ESRCH` if the shim has ended, otherwise the error of `kill(2)`, or without a pidfd
    /// the error of reading `/proc`.
    pub fn send_signal(&self, signal: Signal) -> io::Result<()> {
        self.shim.signal(&self.worker.shared().kernel, signal)
    }

    /// Sends SIGKILL to the shim, and does not wait for its exit. Does nothing if it has ended. Use
    /// [`kill`](Self::kill) to wait.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// shim.start_kill()?;
    /// assert_eq!(shim.await?.signal(), Some(9));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`send_signal`](Self::send_signal), except that `ESRCH` is not an error.
    pub fn start_kill(&self) -> io::Result<()> {
        match self.send_signal(Signal::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    /// Sends SIGKILL to the shim, waits for its exit, and returns it. Returns it also if the shim
    /// has ended already. Use [`stop`](Self::stop) to let the shim end by itself first.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// assert_eq!(shim.kill().await?.signal(), Some(9));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`start_kill`](Self::start_kill), or an error that contains [`ReaperClosed`] if the
    /// reaper shuts down before the exit is known.
    ///
    /// # Cancel safety
    ///
    /// The signal is sent in the first poll. Dropping the future loses nothing.
    pub async fn kill(&self) -> io::Result<ShimExit> {
        self.start_kill()?;
        self.wait().await.map_err(io::Error::other)
    }

    /// Stops the shim: sends SIGTERM, and SIGCONT in case the process is stopped, waits for up to
    /// `grace`, then sends SIGKILL and waits for the exit. Returns the exit in every case, also if the
    /// shim has ended already. Works in every executor, as [`wait_timeout`](Self::wait_timeout) does.
    ///
    /// There is no timeout after the SIGKILL. The future never resolves if the process does not die
    /// of it (it is stuck in the kernel) or if this process lacks the permission to signal it. Wrap
    /// the future in [`tokio::time::timeout`] to limit the wait.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use std::time::Duration;
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// let exit = shim.stop(Duration::from_secs(10)).await?;
    /// assert_eq!(exit.signal(), Some(15)); // SIGTERM was enough.
    /// # Ok(())
    /// # }
    /// ```
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
        self.try_signal(Signal::SIGCONT);
        if let Some(exit) = self.wait_timeout(grace).await? {
            return Ok(exit);
        }
        self.try_signal(Signal::SIGKILL);
        self.wait().await
    }

    /// Sends a signal to a shim that may already have ended.
    fn try_signal(&self, signal: Signal) {
        if let Err(error) = self.send_signal(signal) {
            tracing::debug!(pid = self.id(), %signal, %error, "cannot signal the shim");
        }
    }

    /// Returns a pidfd of the shim, for example to poll it: it is readable once the process has
    /// exited. Do not wait by it, which would be a foreign wait. The first call duplicates the descriptor,
    /// which this handle keeps open from then on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use shim_reaper::Pidfd;
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// let pidfd: Pidfd = shim.pidfd()?.try_clone_to_owned()?.try_into()?;
    /// assert_eq!(pidfd.pid(), shim.id());
    /// # shim.start_kill()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns `ESRCH` if the first call comes after the shim has ended,
    /// [`Unsupported`](io::ErrorKind::Unsupported) if the reaper has no pidfd of the shim (a kernel
    /// before 5.3, or no descriptor was free), otherwise the error of `dup(2)`.
    pub fn pidfd(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(pidfd) = self.pidfd.get() {
            return Ok(pidfd.as_fd());
        }
        let duplicate = self.shim.duplicate_pidfd()?;
        Ok(self.pidfd.get_or_init(|| duplicate).as_fd())
    }
}

impl Clone for ShimHandle {
    fn clone(&self) -> Self {
        Self {
            shim: Arc::clone(&self.shim),
            worker: Arc::clone(&self.worker),
            guard: self.guard.clone(),
            key: None,
            pidfd: OnceLock::new(),
        }
    }
}

impl fmt::Debug for ShimHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShimHandle")
            .field("id", &self.id())
            .field("exit", &self.try_wait())
            .finish_non_exhaustive()
    }
}
