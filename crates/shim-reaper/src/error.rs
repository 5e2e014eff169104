use std::borrow::Cow;
use std::process::Child;

/// The error of a handle whose shim was still running when the reaper shut down.
///
/// The process may still run, and nothing reaps it:
/// [`ShutdownReport::still_running`](crate::ShutdownReport::still_running) lists it, and
/// [`ShimHandle::send_signal`](crate::ShimHandle::send_signal) can still signal it. Use
/// [`shutdown_stopping`](crate::ShimReaper::shutdown_stopping) so that shims end before the reaper.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use shim_reaper::{Command, ShimReaper};
/// # use shim_reaper::ReaperClosed;
/// # let reaper = ShimReaper::start();
///
/// let shim = reaper.spawn(Command::new("sleep").arg("60"))?;
/// reaper.shutdown().await;
/// assert_eq!(shim.wait().await, Err(ReaperClosed));
/// # shim.start_kill()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reaper has shut down")]
pub struct ReaperClosed;

/// The error of a registration that the reaper refused, with the child that it refused, if any.
///
/// [`register`](crate::ShimReaper::register), [`attach`](crate::ShimReaper::attach) and
/// [`register_child`](crate::ShimReaper::register_child) return it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use shim_reaper::{RegisterErrorKind, ShimReaper};
///
/// let error = ShimReaper::start().register(0).unwrap_err();
/// assert_eq!(error.kind(), RegisterErrorKind::Zero);
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("cannot register {}: {kind}", subject(*.pid, *.kind))]
pub struct RegisterError<C = Child> {
    pid: u32,
    kind: RegisterErrorKind,
    child: Option<Box<C>>,
}

fn subject(pid: u32, kind: RegisterErrorKind) -> Cow<'static, str> {
    match kind {
        RegisterErrorKind::NotAPidfd => "the process of a descriptor".into(),
        RegisterErrorKind::Reaped => "a process that has been reaped".into(),
        _ => format!("pid {pid}").into(),
    }
}

/// The reason of a [`RegisterError`], which its [`kind`](RegisterError::kind) returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterErrorKind {
    /// The pid is 0, which in a wait means the caller's whole process group.
    #[error("0 is a process group, not a process; pass the pid of the shim")]
    Zero,
    /// The pid is that of this process, which cannot wait for itself.
    #[error("this is the pid of the current process; pass the pid of the shim")]
    ThisProcess,
    /// The pid is above `i32::MAX`. As a signed number it would be a process group.
    #[error("a pid is at most i32::MAX; pass the pid of the shim")]
    OutOfRange,
    /// The descriptor is not a pidfd, or it is that of a thread.
    #[error("it is not a pidfd of a process; pass one from pidfd_open(2) or a Pidfd")]
    NotAPidfd,
    /// The process has been reaped, and its pid is not known any more: the pidfd does not have it, or
    /// the [`tokio::process::Child`] has been waited for.
    #[error("its pid is not known any more; register it before it is waited for")]
    Reaped,
    /// The reaper has shut down.
    #[error("the reaper has shut down; start a new one")]
    Closed,
}

impl<C> RegisterError<C> {
    pub(crate) fn new(pid: u32, kind: RegisterErrorKind) -> Self {
        Self {
            pid,
            kind,
            child: None,
        }
    }

    pub(crate) fn with_child(mut self, child: Option<C>) -> Self {
        self.child = child.map(Box::new);
        self
    }

    /// Returns the pid that the reaper refused, or 0 if it is not known.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # use shim_reaper::ShimReaper;
    /// let error = ShimReaper::start().register(u32::MAX).unwrap_err();
    /// assert_eq!(error.pid(), u32::MAX);
    /// # }
    /// ```
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the reason.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # use shim_reaper::{RegisterErrorKind, ShimReaper};
    /// let error = ShimReaper::start().register(std::process::id()).unwrap_err();
    /// assert_eq!(error.kind(), RegisterErrorKind::ThisProcess);
    /// # }
    /// ```
    pub fn kind(&self) -> RegisterErrorKind {
        self.kind
    }

    /// Returns the child that [`register_child`](crate::ShimReaper::register_child) refused, so
    /// that the caller can wait for it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::ShimReaper;
    /// # let reaper = ShimReaper::start();
    /// reaper.shutdown().await;
    /// let child = std::process::Command::new("true").spawn()?;
    /// let refused = reaper.register_child(child).unwrap_err().into_child();
    /// assert!(refused.expect("it was given").wait()?.success());
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_child(self) -> Option<C> {
        self.child.map(|child| *child)
    }
}
