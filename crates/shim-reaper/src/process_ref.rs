use std::os::fd::OwnedFd;

use nix::libc;
use sealed::{Process, Sealed};

use crate::{Pidfd, RegisterErrorKind};

/// A process that [`ShimReaper::register`](crate::ShimReaper::register) and
/// [`attach`](crate::ShimReaper::attach) accept: a pid, a [`Pidfd`], or an [`OwnedFd`] that is a
/// pidfd.
///
/// A pid means the process that has it at the time of the call. A pidfd (Linux 5.3) means the process
/// for which it was opened, even if its pid has been recycled since: prefer it where you have one.
///
/// This trait is sealed: these types are the only ones that implement it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::process::Command;
/// use shim_reaper::{Pidfd, ShimReaper};
///
/// let reaper = ShimReaper::start();
/// let child = Command::new("true").spawn()?;
/// let by_pid = reaper.register(child.id())?;
/// let by_pidfd = reaper.register(Pidfd::open(child.id())?)?;
/// assert_eq!(by_pid.await?, by_pidfd.await?); // The same shim.
/// # Ok(())
/// # }
/// ```
pub trait ProcessRef: Sealed {}

pub(crate) mod sealed {
    use super::{OwnedFd, RegisterErrorKind};

    #[derive(Debug)]
    pub struct Process {
        pub(crate) pid: u32,
        pub(crate) pidfd: Option<OwnedFd>,
    }

    pub trait Sealed {
        #[doc(hidden)]
        fn into_process(self) -> Result<Process, RegisterErrorKind>;
    }
}

impl ProcessRef for u32 {}
impl ProcessRef for Pidfd {}
impl ProcessRef for OwnedFd {}

impl Sealed for u32 {
    fn into_process(self) -> Result<Process, RegisterErrorKind> {
        Ok(Process {
            pid: self,
            pidfd: None,
        })
    }
}

impl Sealed for Pidfd {
    fn into_process(self) -> Result<Process, RegisterErrorKind> {
        Ok(Process {
            pid: self.pid(),
            pidfd: Some(self.into()),
        })
    }
}

impl Sealed for OwnedFd {
    fn into_process(self) -> Result<Process, RegisterErrorKind> {
        match Pidfd::try_from(self) {
            Ok(pidfd) => pidfd.into_process(),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(RegisterErrorKind::Reaped)
            }
            Err(_) => Err(RegisterErrorKind::NotAPidfd),
        }
    }
}
