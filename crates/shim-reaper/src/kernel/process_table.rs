use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

use nix::sys::signal::Signal;

use super::ProcStat;
use crate::ResourceUsage;

/// How many reports [`ProcessTable::ready`] gives at the most; fewer mean that there are no more.
pub(crate) const READY_AT_ONCE: usize = 128;

/// What the sweep asks of the kernel; everything else it decides by itself.
///
/// One implementation makes the system calls. Another can play any history of a process table,
/// and drive the very same sweep through it. No method blocks.
pub(crate) trait ProcessTable: Debug + Send + Sync + 'static {
    /// A stable reference to one process, which a recycled pid cannot redirect.
    type Pidfd: Debug + Send + Sync + 'static;

    fn now(&self) -> Instant;

    fn open(&self, pid: u32) -> Result<Self::Pidfd, NoPidfd>;

    /// Starts a child. With `contested`, its pidfd is opened before it can end, at the price of a
    /// slower start: somebody else may collect it before [`open`](Self::open) could see it.
    fn spawn(&self, command: &mut Command, contested: bool) -> io::Result<Spawned<Self::Pidfd>>;

    /// Reports `token` through [`ready`](Self::ready) once, when the process has exited.
    fn watch(&self, pidfd: &Self::Pidfd, token: u64) -> io::Result<()>;

    /// Arms a watch again after it has reported, for what is named by `until`.
    fn watch_again(&self, pidfd: &Self::Pidfd, token: u64, until: Until) -> io::Result<()>;

    /// Appends the tokens of processes that a watch has reported, up to [`READY_AT_ONCE`], and says
    /// how many there were.
    fn ready(&self, tokens: &mut VecDeque<u64>) -> io::Result<usize>;

    /// Looks for the death of a child and leaves it waitable.
    fn peek(&self, target: Target<'_, Self::Pidfd>) -> Waited;

    /// Collects a child if it has died.
    fn reap(&self, target: Target<'_, Self::Pidfd>) -> Waited;

    /// How an already reaped process ended, whoever reaped it; `None` where nobody can tell.
    fn exit_status(&self, pidfd: &Self::Pidfd) -> Option<ExitStatus>;

    /// True once the process has ended: it is a zombie, or gone. Its parent cannot reap it before a
    /// tracer has.
    fn has_exited(&self, pidfd: &Self::Pidfd) -> bool;

    /// True once the process has been reaped: its pid may belong to another one by now.
    fn is_reaped(&self, pidfd: &Self::Pidfd) -> bool;

    fn signal(&self, pidfd: &Self::Pidfd, signal: Signal) -> io::Result<()>;

    fn signal_pid(&self, pid: u32, signal: Signal) -> io::Result<()>;

    /// `None` when no process has this pid.
    fn stat(&self, pid: u32) -> io::Result<Option<ProcStat>>;

    /// The dead children in a process group that may be orphans, adopted by this process. None if
    /// it adopts none, or if one of its threads has forked them for sure.
    fn dead_orphans(&self, pgid: u32) -> Vec<Orphan>;

    /// Reaps an orphan; false if it is not there any more, or cannot be told from another process.
    fn reap_orphan(&self, orphan: Orphan) -> bool;

    /// True while the process group has a member and its number cannot have been recycled.
    fn group_exists(&self, pgid: u32) -> bool;
}

/// Whom a wait is about: by pidfd where there is one, by number otherwise.
#[derive(Debug)]
pub(crate) enum Target<'a, P> {
    Pid(u32),
    Pidfd(u32, &'a P),
}

/// What a wait found.
#[derive(Debug)]
pub(crate) enum Waited {
    Exited(Death),
    Running,
    /// Nothing to wait for: collected by someone else, or not a child of this process.
    NotOurs,
}

/// A new child, and its pidfd or why there is none.
pub(crate) type Spawned<P> = (Child, Result<P, NoPidfd>);

/// How a child ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    pub(crate) status: ExitStatus,
    pub(crate) usage: ResourceUsage,
}

/// A dead child that this process may not have forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Orphan {
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
}

/// What a watch waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Exited,
    /// Collected by anybody. Kernels before 6.9 do not report it.
    Reaped,
}

/// Why there is no pidfd.
#[derive(Debug)]
pub(crate) enum NoPidfd {
    /// No such process, or a thread that leads none.
    NoProcess,
    /// Descriptors or memory are used up; worth another try later.
    Exhausted(io::Error),
    /// Not offered here: an old kernel, a seccomp filter, or switched off.
    Unsupported,
}
