use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::libc;

#[cfg(feature = "serde")]
use crate::serde_time::micros;

/// The exit of a registered shim: its wait status, and whose wait reaped it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shim_reaper::{ReapedBy, ShimReaper};
///
/// let reaper = ShimReaper::start();
/// let mut shim = std::process::Command::new("sh");
/// shim.args(["-c", "exit 3"]);
///
/// let exit = reaper.spawn(shim)?.await?;
/// assert_eq!(exit.code(), Some(3));
/// assert_eq!(exit.reaped_by, ReapedBy::Reaper);
/// # Ok(())
/// # }
/// ```
///
/// With the feature `serde`, it is serialized as in this example. `code` and `signal` are both null
/// if the status is unknown.
///
/// ```json
/// {"pid":7,"code":null,"signal":11,"core_dumped":true,"reaped_by":"reaper","rusage":null}
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShimExit {
    /// The pid of the shim. The kernel may have reused it since.
    pub pid: u32,
    /// The wait status, or `None` if no interface of the running kernel could report it.
    pub status: Option<ExitStatus>,
    /// Whose wait reaped the shim.
    pub reaped_by: ReapedBy,
    /// Resource usage of the shim and of the descendants that it waited for. `None` if other code
    /// reaped the shim before the reaper could read it, or the kernel through
    /// [io_uring](crate::ReaperBuilder::io_uring).
    pub rusage: Option<ResourceUsage>,
}

impl ShimExit {
    /// Returns the exit code, or `None` if a signal killed the shim or its status is unknown.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let exit = reaper.spawn(Command::new("sh").args(["-c", "exit 3"]))?.await?;
    /// assert_eq!((exit.code(), exit.signal()), (Some(3), None));
    /// # Ok(())
    /// # }
    /// ```
    pub fn code(&self) -> Option<i32> {
        self.status?.code()
    }

    /// Returns the number of the signal that killed the shim, or `None` if it exited by itself or its
    /// status is unknown. [`Signal::try_from`](crate::Signal) gives it a name.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # use shim_reaper::Signal;
    /// # let reaper = ShimReaper::start();
    ///
    /// let exit = reaper.spawn(Command::new("sleep").arg("60"))?.kill().await?;
    /// let signal = exit.signal().map(Signal::try_from).transpose()?;
    /// assert_eq!(signal, Some(Signal::SIGKILL));
    /// # Ok(())
    /// # }
    /// ```
    pub fn signal(&self) -> Option<i32> {
        self.status?.signal()
    }

    /// Returns true if the shim is known to have exited with code 0, and false if its status is unknown.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// assert!(reaper.spawn(Command::new("true"))?.await?.success());
    /// assert!(!reaper.spawn(Command::new("false"))?.await?.success());
    /// # Ok(())
    /// # }
    /// ```
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Returns the exit code, or 128 plus the signal number, as shells and container runtimes
    /// report it. Returns `None` if the status is unknown.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use shim_reaper::{Command, ShimReaper};
    /// # let reaper = ShimReaper::start();
    ///
    /// let exit = reaper.spawn(Command::new("sleep").arg("60"))?.kill().await?;
    /// assert_eq!(exit.shell_code(), Some(137)); // 128 + SIGKILL
    /// # Ok(())
    /// # }
    /// ```
    pub fn shell_code(&self) -> Option<i32> {
        self.code()
            .or_else(|| self.signal().map(|signal| 128 + signal))
    }
}

/// The party whose wait reaped a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ReapedBy {
    /// The reaper reaped the shim.
    Reaper,
    /// The reaper left the zombie to its owner, or another wait reaped a shim from
    /// [`register`](crate::ShimReaper::register), which may also have been before the registration.
    ///
    /// The reaper decides this when it sees the exit: if the owner does not wait before the grace
    /// period ends, the reaper reaps the zombie, and
    /// [`ReaperStats::reaped_total`](crate::ReaperStats::reaped_total) counts it.
    Owner,
    /// A foreign wait in this process, or the kernel because SIGCHLD is ignored, reaped a shim from
    /// [`spawn`](crate::ShimReaper::spawn) or [`register_child`](crate::ShimReaper::register_child),
    /// for which only the reaper may wait.
    ForeignWait,
    /// The process is not a child of this process, so that another process reaps it. The reaper observed
    /// the exit of an [attached](crate::ShimReaper::attach) process, or
    /// [`register`](crate::ShimReaper::register) got a process that may still run.
    Observed,
    /// No wait is known: no process had the pid that was attached, or a tracer held the zombie of a
    /// shim without an owner when the reaper saw the exit. The counters of
    /// [`ReaperStats`](crate::ReaperStats) count the latter when the tracer has ended: as reaped, or as
    /// a foreign wait.
    Unknown,
}

/// Resource usage of a shim and of the descendants that it waited for; see `getrusage(2)`.
///
/// With the feature `serde`, the times are serialized in microseconds, as `user_time_us` and
/// `system_time_us`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use shim_reaper::{Command, ShimReaper};
/// # let reaper = ShimReaper::start();
///
/// let exit = reaper.spawn(Command::new("true"))?.await?;
/// assert!(exit.rusage.is_some_and(|usage| usage.max_rss > 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
#[non_exhaustive]
pub struct ResourceUsage {
    /// CPU time in user mode.
    #[cfg_attr(feature = "serde", serde(rename = "user_time_us", with = "micros"))]
    pub user_time: Duration,
    /// CPU time in kernel mode.
    #[cfg_attr(feature = "serde", serde(rename = "system_time_us", with = "micros"))]
    pub system_time: Duration,
    /// Peak resident set size, in bytes, of the largest process among them.
    pub max_rss: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that required I/O.
    pub major_faults: u64,
    /// File system reads, in blocks of 512 bytes.
    pub blocks_read: u64,
    /// File system writes, in blocks of 512 bytes.
    pub blocks_written: u64,
    /// Context switches because the process waited for something.
    pub voluntary_switches: u64,
    /// Context switches because the scheduler preempted the process.
    pub involuntary_switches: u64,
}

impl ResourceUsage {
    pub(crate) fn from_raw(raw: &libc::rusage) -> Self {
        let count = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
        let time = |value: libc::timeval| {
            let micros = u64::try_from(value.tv_usec).unwrap_or(0);
            Duration::from_secs(u64::try_from(value.tv_sec).unwrap_or(0))
                + Duration::from_micros(micros)
        };
        Self {
            user_time: time(raw.ru_utime),
            system_time: time(raw.ru_stime),
            max_rss: count(raw.ru_maxrss).saturating_mul(1024),
            minor_faults: count(raw.ru_minflt),
            major_faults: count(raw.ru_majflt),
            blocks_read: count(raw.ru_inblock),
            blocks_written: count(raw.ru_oublock),
            voluntary_switches: count(raw.ru_nvcsw),
            involuntary_switches: count(raw.ru_nivcsw),
        }
    }
}
