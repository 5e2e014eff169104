use std::process::Child;

/// The reaper shut down before this shim ended; nobody collects it any more.
///
/// The process may still run: [`ShimHandle::signal`](crate::ShimHandle::signal) still reaches it,
/// and [`ShutdownReport::still_running`](crate::ShutdownReport::still_running) names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reaper has shut down")]
pub struct ReaperClosed;

/// Why a pid could not be registered.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use shim_reaper::{RegisterErrorKind, ShimReaper};
///
/// let error = ShimReaper::start().register(0).await.unwrap_err();
/// assert_eq!(error.kind(), RegisterErrorKind::Zero);
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("cannot register pid {pid}: {kind}")]
pub struct RegisterError {
    pid: u32,
    kind: RegisterErrorKind,
    child: Option<Box<Child>>,
}

/// The reason in a [`RegisterError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterErrorKind {
    /// Waiting for pid 0 would mean the caller's whole process group.
    #[error("0 names a process group, not a process; pass the pid of the shim")]
    Zero,
    /// A process cannot wait for itself.
    #[error("it is this process itself; pass the pid of the shim")]
    ThisProcess,
    /// Above `i32::MAX`: no process has such a pid, and as a signed number it is a group.
    #[error("it is above i32::MAX, which no pid is")]
    OutOfRange,
    /// The reaper has shut down; start a new one.
    #[error("the reaper has shut down; start a new one")]
    Closed,
}

impl RegisterError {
    pub(crate) fn new(pid: u32, kind: RegisterErrorKind) -> Self {
        Self {
            pid,
            kind,
            child: None,
        }
    }

    pub(crate) fn with_child(mut self, child: Child) -> Self {
        self.child = Some(Box::new(child));
        self
    }

    /// The pid that was refused.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Why.
    pub fn kind(&self) -> RegisterErrorKind {
        self.kind
    }

    /// The child that [`register_child`](crate::ShimReaper::register_child) could not take, so
    /// that it can still be waited for.
    pub fn into_child(self) -> Option<Child> {
        self.child.map(|child| *child)
    }
}
