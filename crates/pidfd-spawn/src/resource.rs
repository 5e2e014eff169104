/// A resource whose use [`Command::rlimit`](crate::Command::rlimit) limits. `getrlimit(2)` describes
/// each of them.
///
/// ```
/// use pidfd_spawn::{Command, Resource};
///
/// let mut command = Command::new("sh");
/// command.args(["-c", "ulimit -n"]).rlimit(Resource::Nofile, 100, 100);
/// assert_eq!(command.output()?.stdout, b"100\n");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// `RLIMIT_AS`: bytes of address space.
    As,
    /// `RLIMIT_CORE`: bytes of a core dump.
    Core,
    /// `RLIMIT_CPU`: seconds of CPU time. At the soft limit the process gets SIGXCPU, at the hard
    /// limit SIGKILL.
    Cpu,
    /// `RLIMIT_DATA`: bytes of the data segment.
    Data,
    /// `RLIMIT_FSIZE`: bytes of a file that the process writes.
    Fsize,
    /// `RLIMIT_LOCKS`: file locks. Linux has ignored it since 2.4.25.
    Locks,
    /// `RLIMIT_MEMLOCK`: bytes of locked memory.
    Memlock,
    /// `RLIMIT_MSGQUEUE`: bytes in POSIX message queues of the user.
    Msgqueue,
    /// `RLIMIT_NICE`: the lowest nice value that the process may set, as 20 minus that value.
    Nice,
    /// `RLIMIT_NOFILE`: one more than the highest number of a descriptor.
    Nofile,
    /// `RLIMIT_NPROC`: processes and threads of the user.
    Nproc,
    /// `RLIMIT_RSS`: bytes in memory. Linux ignores it since 2.4.30; use a control group.
    Rss,
    /// `RLIMIT_RTPRIO`: the highest real-time priority.
    Rtprio,
    /// `RLIMIT_RTTIME`: microseconds of CPU time that a process with a real-time scheduling policy
    /// may use without a blocking system call.
    Rttime,
    /// `RLIMIT_SIGPENDING`: queued signals of the user.
    Sigpending,
    /// `RLIMIT_STACK`: bytes of the stack of the main thread. The arguments and the environment may
    /// use up to a quarter of it.
    Stack,
}

impl Resource {
    pub(crate) fn raw(self) -> libc::c_int {
        // The type of the constants differs between C libraries.
        let raw = match self {
            Self::As => libc::RLIMIT_AS,
            Self::Core => libc::RLIMIT_CORE,
            Self::Cpu => libc::RLIMIT_CPU,
            Self::Data => libc::RLIMIT_DATA,
            Self::Fsize => libc::RLIMIT_FSIZE,
            Self::Locks => libc::RLIMIT_LOCKS,
            Self::Memlock => libc::RLIMIT_MEMLOCK,
            Self::Msgqueue => libc::RLIMIT_MSGQUEUE,
            Self::Nice => libc::RLIMIT_NICE,
            Self::Nofile => libc::RLIMIT_NOFILE,
            Self::Nproc => libc::RLIMIT_NPROC,
            Self::Rss => libc::RLIMIT_RSS,
            Self::Rtprio => libc::RLIMIT_RTPRIO,
            Self::Rttime => libc::RLIMIT_RTTIME,
            Self::Sigpending => libc::RLIMIT_SIGPENDING,
            Self::Stack => libc::RLIMIT_STACK,
        };
        raw as libc::c_int
    }
}
