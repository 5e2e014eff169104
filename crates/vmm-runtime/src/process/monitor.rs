use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use shim_reaper::Pidfd;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProcessExit {
    /// With this code, or by a signal: then it is 128 plus its number.
    Code(i32),
    /// Nobody can tell any more.
    Unknown,
}

/// Follows a bare pid, child of this process or not, to its end.
///
/// A child is collected by it. To collect children without asking for each, and to leave an owner
/// its right to wait first, use a [`ShimReaper`](shim_reaper::ShimReaper); to follow the box of a
/// runtime, [`VmmRuntime::wait`](crate::VmmRuntime::wait).
///
/// Needs Linux 5.4 (`waitid(2)` with `P_PIDFD`). The end of a process that is not a child of this
/// one, or that somebody else has collected, is known from `/proc` while it is a zombie that we may
/// inspect, and from Linux 6.15 on afterwards, too.
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
    /// A child can be asked only once.
    exit: OnceLock<ProcessExit>,
}

impl ProcessMonitor {
    /// Of whoever has this pid now. One that nobody has is taken for a process that has ended.
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            process: Pidfd::open(pid),
            exit: OnceLock::new(),
        }
    }

    /// The pid that it was made for.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    ///
    /// When there are no pidfds here, or no descriptor was left for one.
    pub fn try_wait(&self) -> io::Result<Option<ProcessExit>> {
        if let Some(exit) = self.exit.get() {
            return Ok(Some(*exit));
        }
        let exit = match self.process()? {
            None => Some(ProcessExit::Unknown),
            Some(process) => look(process)?,
        };
        Ok(exit.map(|exit| *self.exit.get_or_init(|| exit)))
    }

    /// Waits until it has ended, and tells how.
    ///
    /// # Errors
    ///
    /// As [`try_wait`](Self::try_wait).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with an I/O driver.
    pub async fn wait_for_exit(&self) -> io::Result<ProcessExit> {
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(exit);
            }
            // Running, so there is one.
            if let Some(process) = self.process()? {
                process.exited().await?;
            }
        }
    }

    /// `None` if nobody had the pid.
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

fn look(process: &Pidfd) -> io::Result<Option<ProcessExit>> {
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
                Some(status) => of_status(status),
                None => ProcessExit::Unknown,
            })),
            Err(error) => Err(error.into()),
        };
    }
}

fn of_status(status: ExitStatus) -> ProcessExit {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .map_or(ProcessExit::Unknown, ProcessExit::Code)
}
