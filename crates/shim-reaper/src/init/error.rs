use std::io;

use crate::sys::init::ForkError;

/// The error of [`Init::run_if_pid_1`](super::Init::run_if_pid_1) and [`Init::run`](super::Init::run).
///
/// After each error but [`ProcessGroup`](Self::ProcessGroup), the process has not been split, and may go
/// on without an init.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The process has several threads; the number includes the calling one. A fork copies the calling
    /// thread only, and a lock that another thread holds stays locked in the copy.
    #[error(
        "the process has {0} threads and cannot be forked; call this first in `main`, before a tokio \
         runtime is built, and not below `#[tokio::main]`"
    )]
    Threads(usize),
    /// The number of threads is unknown.
    #[error("cannot count the threads of the process; mount /proc")]
    CountThreads(#[source] io::Error),
    /// The process cannot become a subreaper.
    #[error("cannot make the process a subreaper; Linux 3.4 is required")]
    Subreaper(#[source] io::Error),
    /// The process cannot be forked.
    #[error("cannot fork the program; raise `RLIMIT_NPROC` or `pids.max` if it is reached")]
    Fork(#[source] io::Error),
    /// The program cannot be moved to a process group of its own. The process has been split, and the
    /// program gets this error; the init waits for it to exit.
    #[error("cannot create a process group for the program; allow `setpgid` in the seccomp filter")]
    ProcessGroup(#[source] io::Error),
}

impl From<ForkError> for InitError {
    fn from(error: ForkError) -> Self {
        match error {
            ForkError::CountThreads(source) => Self::CountThreads(source),
            ForkError::Threads(count) => Self::Threads(count),
            ForkError::Fork(source) => Self::Fork(source),
        }
    }
}
