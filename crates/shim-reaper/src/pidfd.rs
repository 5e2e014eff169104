use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;

use nix::errno::Errno;

use crate::kernel::{ProcStat, pid_of_pidfd};
use crate::{Signal, sys};

/// A pidfd: a descriptor that refers to one process, and never to another one that gets its pid
/// (`pidfd_open(2)`). Needs Linux 5.3.
///
/// Use it to inspect or signal a process without registering it. To be notified of its exit and to
/// leave no zombie, use a [`ShimReaper`](crate::ShimReaper) instead.
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
    /// Compare what you know of the process, such as its start time, after the call: the pid may have been
    /// recycled before it.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # use shim_reaper::Pidfd;
    /// let process = Pidfd::open(std::process::id())?;
    /// assert!(!process.has_exited());
    /// # Ok(())
    /// # }
    /// ```
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

    /// Returns the pid of the process. Once the process [is reaped](Self::is_reaped), it may belong to
    /// another one.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # use shim_reaper::Pidfd;
    /// let process = Pidfd::open(std::process::id())?;
    /// assert_eq!(process.pid(), std::process::id());
    /// # Ok(())
    /// # }
    /// ```
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns whether the process has exited: it is a zombie or reaped.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # use shim_reaper::Pidfd;
    /// let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
    /// let process = Pidfd::open(child.id())?;
    /// child.kill()?;
    /// child.wait()?;
    /// assert!(process.has_exited());
    /// # Ok(())
    /// # }
    /// ```
    pub fn has_exited(&self) -> bool {
        sys::pidfd_has_exited(self.fd.as_fd())
    }

    /// Waits until the process has exited. It does not reap the process.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// # use shim_reaper::Pidfd;
    /// let mut child = std::process::Command::new("true").spawn()?;
    /// let process = Pidfd::open(child.id())?;
    /// process.exited().await?;
    /// assert!(child.try_wait()?.is_some());
    /// # Ok(())
    /// # }
    /// ```
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
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # use shim_reaper::Pidfd;
    /// let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
    /// let process = Pidfd::open(child.id())?;
    /// assert!(!process.is_reaped());
    /// child.kill()?;
    /// child.wait()?;
    /// assert!(process.is_reaped());
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_reaped(&self) -> bool {
        sys::pidfd_is_reaped(self.fd.as_fd())
    }

    /// Returns the wait status, if the kernel reports it: from `/proc` while the process is a
    /// zombie that this process may inspect (`proc_pid_stat(5)`, field 52), and on Linux 6.15 and
    /// later also after any wait has reaped it. Returns `None` while the process runs.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # use shim_reaper::Pidfd;
    /// let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn()?;
    /// let process = Pidfd::open(child.id())?;
    /// while !process.has_exited() {
    ///     std::thread::yield_now();
    /// }
    /// assert_eq!(process.exit_status().and_then(|status| status.code()), Some(3));
    /// # Ok(())
    /// # }
    /// ```
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
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # use shim_reaper::Pidfd;
    /// # use shim_reaper::Signal;
    /// use std::os::unix::process::ExitStatusExt;
    ///
    /// let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
    /// let process = Pidfd::open(child.id())?;
    /// process.send_signal(Signal::SIGTERM)?;
    /// assert_eq!(child.wait()?.signal(), Some(15));
    /// # Ok(())
    /// # }
    /// ```
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
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # use shim_reaper::Pidfd;
    /// use std::os::fd::OwnedFd;
    ///
    /// let fd: OwnedFd = Pidfd::open(std::process::id())?.into();
    /// assert_eq!(Pidfd::try_from(fd)?.pid(), std::process::id());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
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
