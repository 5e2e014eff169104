use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::ResourceUsage;

/// How a shim ended, and who collected it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use shim_reaper::{CollectedBy, ShimReaper};
///
/// let reaper = ShimReaper::start();
/// let mut shim = std::process::Command::new("sh");
/// shim.args(["-c", "exit 3"]);
///
/// let exit = reaper.spawn(shim).await?.await?;
/// assert_eq!(exit.code(), Some(3));
/// assert_eq!(exit.collected_by, CollectedBy::Reaper);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShimExit {
    /// The process id it had. The kernel may have given it to another process since.
    pub pid: u32,
    /// The wait status, or `None` where no interface of the running kernel could still tell it.
    pub status: Option<ExitStatus>,
    /// Whose wait ended the zombie.
    pub collected_by: CollectedBy,
    /// What the shim and the descendants it waited for consumed; `None` when it was not read
    /// before somebody else collected the shim.
    pub rusage: Option<ResourceUsage>,
}

impl ShimExit {
    /// The exit code, if it ended by exiting.
    pub fn code(&self) -> Option<i32> {
        self.status?.code()
    }

    /// The signal number, if a signal ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status?.signal()
    }

    /// True if it is known to have exited with code 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The exit code, or 128 plus the signal number: the form that shells and container runtimes
    /// report. `None` when the status is unknown.
    pub fn shell_code(&self) -> Option<i32> {
        self.code()
            .or_else(|| self.signal().map(|signal| 128 + signal))
    }
}

/// Who collected a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CollectedBy {
    /// The reaper waited for it.
    Reaper,
    /// It was left to, or taken by, whoever else could wait for it. Decided when the death is
    /// seen: an owner that then lets the grace period pass is relieved of the zombie, and
    /// [`ReaperStats::reaped_total`](crate::ReaperStats::reaped_total) counts that.
    Owner,
    /// It is not a child of this process: only its death was observed.
    Observed,
}
