use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{self, ExitStatus};
use std::sync::Arc;

use sealed::{Adopted, Reaper, Sealed};

use crate::adopt::Owner;
use crate::kernel::Linux;
use crate::pipes::Pipes;
use crate::shared::Shared;
use crate::shim::Shim;
use crate::tokio_child::TokioChild;
use crate::{RegisterError, RegisterErrorKind};

/// A child that [`ShimReaper::register_child`](crate::ShimReaper::register_child) accepts:
/// [`pidfd_spawn::Child`], [`std::process::Child`] or [`tokio::process::Child`].
///
/// This trait is sealed: these types are the only ones that implement it. Use it to write a function
/// that accepts each of them:
///
/// ```
/// use shim_reaper::{ChildProcess, RegisterError, ShimHandle, ShimReaper};
///
/// fn adopt<C: ChildProcess>(reaper: &ShimReaper, child: C) -> Result<ShimHandle, RegisterError<C>> {
///     reaper.register_child(child)
/// }
/// ```
pub trait ChildProcess: Debug + Sealed {}

pub(crate) mod sealed {
    use super::{Arc, Linux, OwnedFd, Pipes, RegisterError, Shared, Shim};

    #[derive(Debug)]
    pub struct Reaper<'a>(pub(crate) &'a Shared<Linux>);

    /// What a child has become.
    #[derive(Debug)]
    pub struct Adopted {
        pub(crate) shim: Arc<Shim<OwnedFd>>,
        pub(crate) pipes: Pipes,
    }

    pub trait Sealed: Sized {
        #[doc(hidden)]
        fn adopt(self, reaper: Reaper<'_>) -> Result<Adopted, RegisterError<Self>>;
    }
}

impl ChildProcess for pidfd_spawn::Child {}
impl ChildProcess for process::Child {}
impl ChildProcess for tokio::process::Child {}

impl Sealed for pidfd_spawn::Child {
    fn adopt(mut self, Reaper(shared): Reaper<'_>) -> Result<Adopted, RegisterError<Self>> {
        let pid = self.id();
        let pipes = Pipes {
            stdin: self.stdin.take(),
            stdout: self.stdout.take(),
            stderr: self.stderr.take(),
        };
        // A duplicate, so that a child that is refused is complete.
        let pidfd = self.pidfd().try_clone_to_owned().ok();
        let mut owner = PidfdOwner(Some(self));
        match shared.adopt(pid, pidfd, &mut owner) {
            Ok(shim) => Ok(Adopted { shim, pipes }),
            Err(kind) => {
                if let Some(child) = &mut owner.0 {
                    (child.stdin, child.stdout, child.stderr) =
                        (pipes.stdin, pipes.stdout, pipes.stderr);
                }
                Err(RegisterError::new(pid, kind).with_child(owner.0))
            }
        }
    }
}

impl Sealed for process::Child {
    fn adopt(mut self, Reaper(shared): Reaper<'_>) -> Result<Adopted, RegisterError<Self>> {
        let pid = self.id();
        match shared.adopt(pid, None, &mut self) {
            Ok(shim) => Ok(Adopted {
                shim,
                pipes: self.into(),
            }),
            Err(kind) => Err(RegisterError::new(pid, kind).with_child(Some(self))),
        }
    }
}

impl Sealed for tokio::process::Child {
    fn adopt(mut self, Reaper(shared): Reaper<'_>) -> Result<Adopted, RegisterError<Self>> {
        let Some(pid) = self.id() else {
            return Err(RegisterError::new(0, RegisterErrorKind::Reaped).with_child(Some(self)));
        };
        // Not part of what the worker may drop at any time.
        let pipes = (self.stdin.take(), self.stdout.take(), self.stderr.take());
        let mut owner = TokioOwner(Some(self));
        match shared.adopt(pid, None, &mut owner) {
            Ok(shim) => Ok(Adopted {
                shim,
                pipes: pipes.into(),
            }),
            Err(kind) => {
                if let Some(child) = &mut owner.0 {
                    (child.stdin, child.stdout, child.stderr) = pipes;
                }
                Err(RegisterError::new(pid, kind).with_child(owner.0))
            }
        }
    }
}

struct PidfdOwner(Option<pidfd_spawn::Child>);

impl Owner<OwnedFd> for PidfdOwner {
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.as_mut().map_or(Ok(None), |child| child.try_wait())
    }

    fn has_pidfd(&self) -> bool {
        self.0.is_some()
    }

    fn take_pidfd(&mut self) -> Option<OwnedFd> {
        self.0.take().map(pidfd_spawn::Child::into_pidfd)
    }
}

impl Owner<OwnedFd> for process::Child {
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.try_wait()
    }
}

struct TokioOwner(Option<tokio::process::Child>);

impl Owner<OwnedFd> for TokioOwner {
    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.as_mut().map_or(Ok(None), |child| child.try_wait())
    }

    fn take_tokio_child(&mut self) -> Option<TokioChild> {
        self.0.take().map(TokioChild::new)
    }
}
