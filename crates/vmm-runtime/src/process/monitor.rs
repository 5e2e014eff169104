use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use shim_reaper::Pidfd;

/// How a process ended, as seen by a [`ProcessMonitor`]. Unlike an [`Ending`](vmm_protocol::Ending)
/// it has no cause: a bare pid has no exit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessExit {
    /// The exit code, or 128 plus the number of the signal that killed it.
    Code(i32),
    /// The exit status is no longer available.
    Unknown,
}

/// A monitor that follows one pid, of a child or of another process, until it exits.
///
/// The monitor reaps the process if it is a child of this process. To reap many children, and to
/// let their owners wait first, use a [`ShimReaper`](shim_reaper::ShimReaper); to follow a box, use
/// [`VmmRuntime::wait`](crate::VmmRuntime::wait).
///
/// Requires Linux 5.4 (`waitid(2)` with `P_PIDFD`). If the process is not a child of this one, or a
/// foreign wait reaped it, its exit status is read from `/proc` while it is a zombie that this user
/// may inspect. From Linux 6.15 the status is also available later.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// use vmm_runtime::{ProcessExit, ProcessMonitor};
///
/// let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn()?;
/// let monitor = ProcessMonitor::new(child.id());
/// assert_eq!(monitor.wait_for_exit().await?, ProcessExit::Code(3));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ProcessMonitor {
    pid: u32,
    process: io::Result<Pidfd>,
    /// Kept, because the kernel reports the exit status of a child only once.
    exit: OnceLock<ProcessExit>,
}

impl ProcessMonitor {
    /// Monitors the process that currently has this pid. If no process has it, the monitor reports
    /// an exit with [`ProcessExit::Unknown`].
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            process: Pidfd::open(pid),
            exit: OnceLock::new(),
        }
    }

    /// Returns the pid that was passed to [`new`](Self::new).
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns how the process ended, or `None` while it is running.
    ///
    /// # Errors
    ///
    /// If the kernel has no pidfds, or no descriptor was left for one.
    pub fn try_wait(&self) -> io::Result<Option<ProcessExit>> {
        if let Some(exit) = self.exit.get() {
            return Ok(Some(*exit));
        }
        let exit = match self.process()? {
            None => Some(ProcessExit::Unknown),
            Some(process) => poll_exit(process)?,
        };
        Ok(exit.map(|exit| *self.exit.get_or_init(|| exit)))
    }

    /// Waits until the process has ended and returns how.
    ///
    /// # Errors
    ///
    /// See [`try_wait`](Self::try_wait).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with an I/O driver.
    pub async fn wait_for_exit(&self) -> io::Result<ProcessExit> {
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(exit);
            }
            // A running process has a pidfd.
            if let Some(process) = self.process()? {
                process.exited().await?;
            }
        }
    }

    /// Returns the pidfd, or `None` if no process had the pid.
    fn process(&self) -> io::Result<Option<&Pidfd>> {
        match &self.process {
            Ok(process) => Ok(Some(process)),
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::SRCH) => Ok(None),
                Some(errno) => Err(errno.into()),
                None => Err(io::Error::other(error.to_string())),
            },
        }
    }
}

/// Reaps the process if it is a child that has exited. Returns `None` while it is running.
fn poll_exit(process: &Pidfd) -> io::Result<Option<ProcessExit>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    loop {
        return match waitid(WaitId::PidFd(process.as_fd()), options) {
            Ok(None) => Ok(None),
            Ok(Some(status)) => {
                let by_signal = status.terminating_signal().map(|signal| 128 + signal);
                let code = status.exit_status().or(by_signal);
                Ok(Some(code.map_or(ProcessExit::Unknown, ProcessExit::Code)))
            }
            Err(Errno::INTR) => continue,
            Err(Errno::CHILD) if !process.has_exited() => Ok(None),
            Err(Errno::CHILD) => Ok(Some(match process.exit_status() {
                Some(status) => exit_of_status(status),
                None => ProcessExit::Unknown,
            })),
            Err(error) => Err(error.into()),
        };
    }
}

fn exit_of_status(status: ExitStatus) -> ProcessExit {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .map_or(ProcessExit::Unknown, ProcessExit::Code)
}
