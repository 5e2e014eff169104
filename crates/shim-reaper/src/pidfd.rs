use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;

use nix::errno::Errno;

use crate::kernel::{ProcStat, pid_of_pidfd};
use crate::{Signal, sys};

/// A pidfd: a reference to one process that a recycled pid cannot redirect.
///
/// Use it to inspect or signal a process without registering it. To be notified of its exit and to
/// leave no zombie, use a [`ShimReaper`](crate::ShimReaper) instead.
///
/// Needs Linux 5.3.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use shim_reaper::{Pidfd, Signal};
///
/// let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
/// let process = Pidfd::open(child.id())?;
/// assert!(!process.has_exited());
/// process.send_signal(Signal::SIGKILL)?;
/// child.wait()?;
/// assert!(process.has_exited() && process.is_reaped());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pidfd {
    pid: u32,
    fd: OwnedFd,
}

impl Pidfd {
    /// Opens a pidfd of the process that currently has this pid, which may be a zombie. The
    /// descriptor is close-on-exec.
    ///
    /// # Errors
    ///
    /// Returns `ESRCH` if no process has this pid, otherwise the error of `pidfd_open(2)`.
    pub fn open(pid: u32) -> io::Result<Self> {
        match pid {
            1..=0x7fff_ffff => Ok(Self {
                pid,
                fd: sys::pidfd_open(pid)?,
            }),
            _ => Err(Errno::ESRCH.into()),
        }
    }

    /// Returns the pid of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns whether the process has exited: it is a zombie or reaped.
    pub fn has_exited(&self) -> bool {
        sys::pidfd_has_exited(self.fd.as_fd())
    }

    /// Waits until the process has exited.
    ///
    /// # Errors
    ///
    /// Returns an error if tokio cannot poll the descriptor.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing; a later call still returns.
    ///
    /// # Panics
    ///
    /// Panics outside a tokio runtime with an I/O driver, as every tokio socket does.
    pub async fn exited(&self) -> io::Result<()> {
        sys::poll_readable(self.fd.as_fd())?
            .readable()
            .await
            .map(drop)
    }

    /// Returns whether the process is reaped. Its pid may then belong to another process.
    pub fn is_reaped(&self) -> bool {
        let probe = sys::pidfd_send_signal(self.fd.as_fd(), None);
        probe.is_err_and(|error| error.raw_os_error() == Some(Errno::ESRCH as i32))
    }

    /// Returns the wait status, if the kernel can report it: from `/proc` while the process is a
    /// zombie that this process may inspect (`proc_pid_stat(5)`, field 52), and on Linux 6.15 and
    /// later also after any wait has reaped it.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        if self.is_reaped() {
            return sys::pidfd_exit_status(self.fd.as_fd());
        }
        let stat = ProcStat::read(self.pid).ok().flatten();
        // Reaped in between, so `stat` may belong to another process.
        if self.is_reaped() {
            return sys::pidfd_exit_status(self.fd.as_fd());
        }
        stat.and_then(|stat| stat.status)
    }

    /// Sends a signal to this process, and never to another one.
    ///
    /// # Errors
    ///
    /// Returns `ESRCH` if the process is reaped, otherwise the error of `pidfd_send_signal(2)`.
    pub fn send_signal(&self, signal: Signal) -> io::Result<()> {
        sys::pidfd_send_signal(self.fd.as_fd(), Some(signal))
    }
}

impl AsFd for Pidfd {
    /// Borrows the descriptor, for example to poll it: it is readable once the process has exited.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl TryFrom<OwnedFd> for Pidfd {
    type Error = io::Error;

    /// Takes over a pidfd from `pidfd_open(2)`, `clone3(2)` or a socket.
    ///
    /// Fails with [`InvalidInput`](io::ErrorKind::InvalidInput) if the descriptor is not a pidfd, or
    /// is that of a thread, and with `ESRCH` if the kernel does not know the pid any more, because
    /// the process has been reaped, or is in another PID namespace.
    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let pid = match sys::pidfd_pid(fd.as_fd()) {
            Some(pid) => pid?,
            None => pid_of_pidfd(fd.as_fd())?,
        };
        Ok(Self { pid, fd })
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> Self {
        pidfd.fd
    }
}
