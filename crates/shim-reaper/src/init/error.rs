use std::io;

/// The error of an [`Init`](super::Init) that has not started the program, or not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The process has other threads. A fork copies only the calling thread, and whatever another
    /// thread has locked stays locked in the copy.
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
    /// The program, which is forked, cannot be moved to a process group of its own. This is an error
    /// in the program; the init waits for the program to exit.
    #[error("cannot create a process group for the program; allow `setpgid` in the seccomp filter")]
    ProcessGroup(#[source] io::Error),
}
