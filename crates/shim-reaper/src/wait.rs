use std::future::{Future, IntoFuture, poll_fn};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::handle::ShimHandle;
use crate::wake_event::WakeEvent;
use crate::{ReaperClosed, ShimExit, sys};

/// How often [`ShimHandle::wait_blocking`] checks a process for which it has no pidfd, or no event
/// that the worker raises.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A future that resolves to the exit of a shim; [`ShimHandle::wait`] returns it, and describes its
/// errors and its cancel safety.
///
/// It has a name so that it can be stored:
///
/// ```
/// use shim_reaper::Wait;
///
/// struct Watched<'a> {
///     exit: Wait<'a>,
/// }
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Wait<'a> {
    handle: &'a ShimHandle,
    key: Option<u32>,
}

impl ShimHandle {
    /// Waits until the exit of the shim is known, and returns it. The same as `(&handle).await`. Use
    /// [`wait_timeout`](Self::wait_timeout) to limit the wait.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sh").args(["-c", "exit 3"]))?;
    /// assert_eq!(shim.wait().await?.code(), Some(3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`ReaperClosed`] if the reaper shuts down while the shim is running.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub fn wait(&self) -> Wait<'_> {
        Wait {
            handle: self,
            key: None,
        }
    }

    /// Waits like [`wait`](Self::wait), for up to `timeout`. Returns `None` if the shim still runs
    /// then. Works in every executor, because the worker of the reaper drives the timer: the tokio
    /// runtime of the reaper must run meanwhile, or the reaper needs
    /// [a thread of its own](crate::ReaperBuilder::start_dedicated).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use std::time::Duration;
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// assert_eq!(shim.wait_timeout(Duration::from_millis(10)).await?, None);
    /// # shim.start_kill()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Cancel safety
    ///
    /// As for [`wait`](Self::wait).
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<Option<ShimExit>, ReaperClosed> {
        let mut exit = pin!(self.wait());
        let mut expired = pin!(self.worker.sleep(timeout));
        poll_fn(|cx| match exit.as_mut().poll(cx) {
            Poll::Ready(exit) => Poll::Ready(exit.map(Some)),
            Poll::Pending => expired.as_mut().poll(cx).map(|()| Ok(None)),
        })
        .await
    }

    /// Blocks the calling thread until the exit of the shim is known, and returns it. Use it in
    /// code that cannot await, inside or outside a tokio runtime. It does not depend on the progress
    /// of any task: if the worker of the reaper does not run, this reaps.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::builder().start_dedicated()?;
    /// let shim = reaper.spawn(Command::new("sh").args(["-c", "exit 3"]))?;
    /// assert_eq!(shim.wait_blocking()?.code(), Some(3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait), and in a forked child of the process that registered the shim.
    pub fn wait_blocking(&self) -> Result<ShimExit, ReaperClosed> {
        // Without a free descriptor it polls.
        let event = WakeEvent::new().ok().map(Arc::new);
        let waker = event
            .as_ref()
            .map_or_else(|| Waker::noop().clone(), |event| Arc::clone(event).into());
        let mut cx = Context::from_waker(&waker);
        let mut exit = pin!(self.wait());
        loop {
            if let Poll::Ready(exit) = exit.as_mut().poll(&mut cx) {
                return exit;
            }
            // In a forked copy nothing can wait for the shim.
            if self.worker.is_forked_copy() {
                return Err(ReaperClosed);
            }
            self.block(event.as_deref());
            self.worker.check_blocking(&self.shim);
        }
    }

    /// Blocks until the event is raised or the process exits.
    fn block(&self, event: Option<&WakeEvent>) {
        // A zombie that cannot be reaped yet, because its owner or a tracer holds it, stays readable.
        let pidfd = self.shim.duplicate_pidfd().ok();
        let pidfd = pidfd.as_ref().map(AsFd::as_fd);
        let pidfd = pidfd.filter(|fd| !sys::pidfd_has_exited(*fd));
        let descriptors = [pidfd, event.map(AsFd::as_fd)];
        let mut polled: Vec<_> = descriptors
            .into_iter()
            .flatten()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let timeout = match polled.len() {
            2 => PollTimeout::NONE,
            _ => PollTimeout::try_from(POLL_INTERVAL).unwrap_or(PollTimeout::MAX),
        };
        // Returns early on a signal.
        let _ = poll(&mut polled, timeout);
    }

    /// Returns the exit if it is known, and `None` while the shim runs. It does not ask the kernel: the
    /// worker of the reaper, or another wait, has to notice the exit first.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
    /// assert_eq!(shim.try_wait()?, None);
    /// let exit = shim.kill().await?;
    /// assert_eq!(shim.try_wait()?, Some(exit));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn try_wait(&self) -> Result<Option<ShimExit>, ReaperClosed> {
        self.shim.state().outcome()
    }

    fn poll_exit(
        &self,
        key: &mut Option<u32>,
        cx: &Context<'_>,
    ) -> Poll<Result<ShimExit, ReaperClosed>> {
        let exit = self.shim.poll_exit(key, cx.waker());
        if exit.is_pending() {
            self.worker.ensure_alive();
        }
        exit
    }

    fn stop_waiting(&self, key: Option<u32>) {
        if let Some(key) = key {
            self.shim.stop_waiting(key);
        }
    }
}

impl Future for Wait<'_> {
    type Output = Result<ShimExit, ReaperClosed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.handle.poll_exit(&mut this.key, cx)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.handle.stop_waiting(self.key);
    }
}

impl<'a> IntoFuture for &'a ShimHandle {
    type Output = Result<ShimExit, ReaperClosed>;
    type IntoFuture = Wait<'a>;

    fn into_future(self) -> Wait<'a> {
        self.wait()
    }
}

impl Future for ShimHandle {
    type Output = Result<ShimExit, ReaperClosed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut key = self.key;
        let exit = self.poll_exit(&mut key, cx);
        self.key = key;
        exit
    }
}

impl Drop for ShimHandle {
    fn drop(&mut self) {
        self.stop_waiting(self.key);
    }
}
