use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;

use nix::errno::Errno;

use crate::kernel::ProcStat;
use crate::{Signal, sys};

/// A process that stays the same one, whatever becomes of its pid.
///
/// For looking at a process, or signalling it, without anything being registered. To be told of
/// its end, and to leave no zombie, use a [`ShimReaper`](crate::ShimReaper).
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
/// process.signal(Signal::SIGKILL)?;
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
    /// Of whoever has this pid now, a zombie included. The descriptor is close-on-exec.
    ///
    /// # Errors
    ///
    /// `ESRCH` if nobody has it; otherwise what `pidfd_open(2)` says.
    pub fn open(pid: u32) -> io::Result<Self> {
        match pid {
            1..=0x7fff_ffff => Ok(Self {
                pid,
                fd: sys::pidfd_open(pid)?,
            }),
            _ => Err(Errno::ESRCH.into()),
        }
    }

    /// The pid that it was opened by.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended: it is a zombie, or gone.
    pub fn has_exited(&self) -> bool {
        sys::pidfd_has_exited(self.fd.as_fd())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    ///
    /// When the descriptor cannot be polled.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with an I/O driver, as every tokio socket.
    pub async fn exited(&self) -> io::Result<()> {
        sys::poll_readable(self.fd.as_fd())?
            .readable()
            .await
            .map(drop)
    }

    /// Whether it is gone: its parent has collected it, and its pid may be another's.
    pub fn is_reaped(&self) -> bool {
        let probed = sys::pidfd_send_signal(self.fd.as_fd(), None);
        probed.is_err_and(|error| error.raw_os_error() == Some(Errno::ESRCH as i32))
    }

    /// How it ended, where that can be told: from `/proc` while it is a zombie that we may inspect
    /// (`proc_pid_stat(5)`, field 52), and once it is gone, whoever has collected it, from Linux
    /// 6.15 on.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        if self.is_reaped() {
            return sys::pidfd_exit_status(self.fd.as_fd());
        }
        let seen = ProcStat::read(self.pid).ok().flatten();
        // Collected meanwhile, and what was seen may be another process.
        if self.is_reaped() {
            return sys::pidfd_exit_status(self.fd.as_fd());
        }
        seen.and_then(|stat| stat.status)
    }

    /// Sends a signal, to this process and to no other.
    ///
    /// # Errors
    ///
    /// `ESRCH` once it is gone; otherwise what `pidfd_send_signal(2)` says.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        sys::pidfd_send_signal(self.fd.as_fd(), Some(signal))
    }
}

impl AsFd for Pidfd {
    /// To be polled: it is readable from the end of the process on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
